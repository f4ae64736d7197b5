"""Figures that only the text of a compiled program (HLO) has: its all-reduces, and the cycles of its
operations."""

import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Instruction(NamedTuple):
    """A line of a computation."""

    result: str
    """Type of the result."""
    operation: str
    rest: str
    """Rest of the line, from the operands on."""


class AllReduce(NamedTuple):
    """Arrays that are summed over all devices in one operation."""

    arrays: int
    bytes: int
    """Bytes on one device."""


def all_reduces(text: str) -> list[AllReduce]:
    """Returns the all-reduces of a program, the largest first; one in a loop is listed once."""
    found = []
    for instruction in (each for computation in _parse(text)[0].values() for each in computation):
        if instruction.operation in ("all-reduce", "all-reduce-start"):
            arrays = ARRAY.findall(instruction.result)
            found.append(AllReduce(len(arrays), sum(_bytes(*array) for array in arrays)))
    return sorted(found, key=lambda one: -one.bytes)


def estimated_cycles(text: str) -> int | None:
    """Returns the sum of the cycles that a TPU's compiler expects of operations; None if it noted none.

    The body of a loop counts once, of branches the most expensive. Custom gathers and scatters, sorting,
    collectives and waiting for memory have no estimate.
    """
    computations, entry = _parse(text)
    return _cycles(computations, entry) if CYCLES.search(text) else None


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the computations of a program by name, and the name of its entry."""
    computations, current, entry = {}, [], ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            is_entry, name = match.groups()
            current, entry = computations.setdefault(name, []), name if is_entry else entry
        elif match := INSTRUCTION.match(line):
            current.append(Instruction(*match.groups()))
    return computations, entry


def _cycles(computations: Mapping[str, Sequence[Instruction]], name: str) -> int:
    total = 0
    for _, operation, rest in computations[name]:
        noted = CYCLES.search(rest)
        called = [_cycles(computations, each) for each in _called(operation, rest)]
        total += int(noted[1]) if noted else 0
        total += max(called) if operation == "conditional" else sum(called)
    return total


def _called(operation: str, rest: str) -> list[str]:
    """Returns the computations that an instruction runs as such, not as a part of a fusion."""
    roles = {
        "while": "body",
        "conditional": "branch_computations|true_computation|false_computation",
        "call": "to_apply",
    }
    if operation not in roles:
        return []
    found = re.findall(rf"\b(?:{roles[operation]})=(\{{[^}}]*\}}|%?[\w.\-]+)", rest)
    return [name for names in found for name in re.findall(r"[\w.\-]+", names)]


def _bytes(dtype: str, sides: str) -> int:
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())
    return prod(map(int, filter(None, sides.split(",")))) * bits // 8
