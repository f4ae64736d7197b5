"""Figures that only the text of a compiled program (HLO) has: its all-reduces, and the cycles of its
operations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
PATH = re.compile(r'(?<=op_name=")[^"]*')
ROLES = {
    "while": "body", "call": "to_apply",
    "conditional": "branch_computations|true_computation|false_computation",
}  # fmt: skip
"""Attributes with the computations that an operation runs."""
PARTS = {
    "stem and res2": r"backbone/(?:backbone\._)?(?:stem|res2)|MaskRCNN\.pyramid\)*/(?!backbone|fpn)",
    "res3": "backbone/res3", "res4": "backbone/res4", "res5": "backbone/res5",
    "strips": "/backbone/[^/]+$", "pyramid": "/fpn/",
    "RPN head": r"MaskRCNN\.objectness", "proposals": r"MaskRCNN\.proposals",
    "RoI pooling": r"MaskRCNN\.roi_features", "box head": r"MaskRCNN\.classify",
    "mask head": r"MaskRCNN\.mask_logits|\bMaskHead\b", "targets, losses, update": ".",
}  # fmt: skip
"""Parts of a training step, and what the paths of their operations contain; the first that fits counts."""
UNNAMED = "copies without a path"
Instruction = tuple[str, str, str]  # type of the result, operation, and the rest from the operands on


class AllReduce(NamedTuple):
    """Number of arrays that one operation sums over all devices, and their bytes on one device."""

    arrays: int
    bytes: int


def all_reduces(text: str) -> list[AllReduce]:
    """Returns the all-reduces of a program, the largest first; one in a loop is listed once."""
    instructions = [instruction for lines in _parse(text)[0].values() for instruction in lines]
    results = [result for result, name, _ in instructions if name in ("all-reduce", "all-reduce-start")]
    sizes = [[_bytes(*array) for array in ARRAY.findall(result)] for result in results]
    return sorted((AllReduce(len(each), sum(each)) for each in sizes), key=lambda one: -one.bytes)


def estimated_cycles(text: str) -> int | None:
    """Returns the sum of the cycles that a TPU's compiler expects of operations; None if it noted none.

    The body of a loop counts once, of branches the most expensive. Custom gathers and scatters, sorting,
    collectives and waiting for memory have no estimate.
    """
    return sum(cycles for _, cycles in _noted(*_parse(text))) if CYCLES.search(text) else None


def cycles_by_part(text: str) -> dict[str, tuple[int, int]]:
    """Returns the estimated cycles of the parts of a training step: forward, and of its gradient."""
    parts = dict.fromkeys([*PARTS, UNNAMED], (0, 0))
    for rest, cycles in _noted(*_parse(text)):
        path = (PATH.search(rest) or [""])[0]
        name = next((name for name, pattern in PARTS.items() if re.search(pattern, path)), UNNAMED)
        forward, backward = parts[name]
        is_gradient = "transpose(" in path
        parts[name] = forward + cycles * (not is_gradient), backward + cycles * is_gradient
    return parts


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of a program's computations by name, and the name of its entry."""
    computations, current, entry = {}, [], ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            is_entry, name = match.groups()
            current, entry = computations.setdefault(name, []), name if is_entry else entry
        elif match := INSTRUCTION.match(line):
            current.append(match.groups())
    return computations, entry


def _noted(computations: Mapping[str, Sequence[Instruction]], name: str) -> Iterator[tuple[str, int]]:
    """Yields the operations with estimated cycles that a computation runs: their text and the cycles."""
    for _, operation, rest in computations[name]:
        if noted := CYCLES.search(rest):
            yield rest, int(noted[1])
        called = [list(_noted(computations, each)) for each in _called(operation, rest)]
        if operation == "conditional":
            called = [max(called, key=lambda branch: sum(cycles for _, cycles in branch))]
        for each in called:
            yield from each


def _called(operation: str, rest: str) -> list[str]:
    """Returns the computations that an instruction runs as such, not as a part of a fusion."""
    if operation not in ROLES:
        return []
    found = re.findall(rf"\b(?:{ROLES[operation]})=(\{{[^}}]*\}}|%?[\w.\-]+)", rest)
    return [name for names in found for name in re.findall(r"[\w.\-]+", names)]


def _bytes(dtype: str, sides: str) -> int:
    """Returns the bytes of an array of HLO's type and sides, such as f32 and "3,4"."""
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype).group())
    return prod(map(int, filter(None, sides.split(",")))) * bits // 8
