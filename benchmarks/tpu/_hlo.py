"""What the text of a compiled program says: how often its loops turn, what its devices add up, and how many cycles its operations are estimated to take."""

import re
from collections.abc import Mapping
from math import prod
from typing import NamedTuple

ROOT = ""
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """A line of a computation."""

    result: str  # its type
    operation: str
    operands: list[str]
    rest: str  # of the line, from the operands on


Computation = Mapping[str, Instruction]
"""Instructions by name; its result is there once more as ROOT."""


class AllReduce(NamedTuple):
    """Arrays that are added up over all devices in one operation."""

    arrays: int
    bytes: int  # of one device


def loops(text: str) -> list[int | None]:
    """How often each loop of a program in HLO turns, in the order of the text.

    Known if the compiler has noted it, or if the loop counts up by one, from a constant and as long as the counter is below a constant: those of ``lax.scan``,
    ``lax.map``, and ``lax.fori_loop`` with bounds that are no arrays. None otherwise.
    """
    computations, _ = parse(text)
    return [turns(computations, caller, loop) for caller in computations.values() for loop in _operations(caller) if loop.operation == "while"]


def all_reduces(text: str) -> list[AllReduce]:
    """The all-reduces of a program, the largest first; one within a loop is listed once."""
    computations, _ = parse(text)
    found = [
        AllReduce(len(arrays := ARRAY.findall(step.result)), sum(_bytes(*array) for array in arrays))
        for computation in computations.values()
        for step in _operations(computation)
        if step.operation in ("all-reduce", "all-reduce-start")
    ]
    return sorted(found, key=lambda one: -one.bytes)


def estimated_cycles(text: str) -> int | None:
    """The sum of the cycles that a TPU's compiler expects of a program's operations, None if it has noted none.

    A loop counts as often as it turns, or once where data decide; of branches the dearest. Custom gathers and scatters, sorting and collectives have no estimate,
    and waiting for memory is in none.
    """
    computations, entry = parse(text)
    return _cycles(computations, computations[entry]) if '"estimated_cycles"' in text else None


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the one that it begins with."""
    computations, current, entry = {}, {}, ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            begins, name = match.groups()
            current, entry = computations.setdefault(name, {}), name if begins else entry
        elif match := INSTRUCTION.match(line):
            root, name, result, operation, rest = match.groups()
            operands = rest.split(")")[0] if operation != "constant" else ""
            current[name] = instruction = Instruction(result, operation, re.findall(r"%([\w.\-]+)", operands), rest)
            if root:
                current[ROOT] = instruction
    return computations, entry


def turns(computations: Mapping[str, Computation], caller: Computation, loop: Instruction) -> int | None:
    """How often a loop turns; see ``loops``."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(noted.group(1))
    condition, body = (computations[_called(loop, part)[0]] for part in ("condition", "body"))
    test, before, after = condition[ROOT], _source(caller, loop.operands[0]), body[ROOT]
    if test.operation != "compare" or "direction=LT" not in test.rest or {before.operation, after.operation} != {"tuple"}:
        return None

    def constant(computation, name):
        """The number that a name within the loop stands for in every turn; None if there is none."""
        index = _part(computation, name)
        if index is None:
            return _constant(computation, name)
        handed_on = _part(body, after.operands[index]) == index
        return _constant(caller, before.operands[index]) if handed_on else None

    counter, limit = _part(condition, test.operands[0]), constant(condition, test.operands[1])
    if counter is None or limit is None:
        return None
    begin, step = _constant(caller, before.operands[counter]), _source(body, after.operands[counter])
    if begin is None or step.operation != "add":
        return None
    others = [name for name in step.operands if _part(body, name) != counter]
    return max(limit - begin, 0) if len(others) == 1 and constant(body, others[0]) == 1 else None


def _operations(computation):
    return [instruction for name, instruction in computation.items() if name != ROOT]


def _bytes(dtype, sides):
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())
    return prod(map(int, filter(None, sides.split(",")))) * bits // 8


def _cycles(computations, computation):
    total = 0
    for step in _operations(computation):
        if noted := re.search(r'"estimated_cycles":"(\d+)"', step.rest):
            total += int(noted.group(1))
        if step.operation == "while":
            often = turns(computations, computation, step)
            total += (1 if often is None else often) * _cycles(computations, computations[_called(step, "body")[0]])
        elif step.operation == "conditional":
            branches = _called(step, "branch_computations") + _called(step, "true_computation") + _called(step, "false_computation")
            total += max(_cycles(computations, computations[name]) for name in branches)
        elif step.operation == "call":
            total += _cycles(computations, computations[_called(step, "to_apply")[0]])
    return total


def _called(instruction, part):
    """The names of the computations that an instruction has as ``part``."""
    named = re.search(rf"\b{part}=(\{{[^}}]*\}}|%?[\w.\-]+)", instruction.rest)
    return re.findall(r"[\w.\-]+", named.group(1)) if named else []


def _source(computation, name):
    """The instruction of a name, or what it copies."""
    while (instruction := computation[name]).operation in ("copy", "bitcast"):
        (name,) = instruction.operands
    return instruction


def _part(computation, name):
    """Which part of a loop's state, the argument of its condition and body, a name is; None for anything else."""
    instruction = _source(computation, name)
    if instruction.operation != "get-tuple-element" or computation[instruction.operands[0]].operation != "parameter":
        return None
    return int(re.search(r"index=(\d+)", instruction.rest).group(1))


def _constant(computation, name):
    instruction = _source(computation, name)
    number = re.match(r"(-?\d+)\)", instruction.rest) if instruction.operation == "constant" else None
    return int(number.group(1)) if number else None
