"""Reader of a run's history.jsonl and metrics.json; tolerates damaged lines."""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from mrcnn_jax.paths import read_bytes

_BLANK = b"\0 \t\r"  # file systems leave zeros after a power failure


class History(NamedTuple):
    """Lines of a history.jsonl."""

    lines: list[dict[str, Any]]  # in the order of their steps
    damaged: list[tuple[int, bytes]]  # number and content of the others
    count: int  # of all, but for half a line at the end, as a killed process leaves it


def parse_history(content: bytes) -> History:
    """Reads the content of a history.jsonl, whatever it is."""
    *rows, last = content.split(b"\n")
    numbered = [(number, row) for number, row in enumerate([*rows, last], 1) if row.strip(_BLANK)]
    parsed = [(number, row, _parse(row)) for number, row in numbered]
    damaged = [(number, row) for number, row, line in parsed if line is None and number <= len(rows)]
    usable = sorted((line for *_, line in parsed if line is not None), key=lambda line: line["step"])
    return History(usable, damaged, len(rows))


def read_history(file: epath.Path, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the usable lines of a history in the order of their steps.

    Others are moved to history.damaged.jsonl, with a warning; so is a file that cannot be read at all. Half a
    line at the end is dropped, as a killed process leaves it.
    """
    if not file.exists():
        return []
    aside = file.with_name("history.damaged.jsonl")
    try:
        lines, damaged, count = parse_history(read_bytes(file))
    except OSError as error:
        file.rename(aside)
        warn(f"{file} cannot be read ({error.strerror}) and is moved to {aside.name}; a new one begins")
        return []
    if damaged:
        kept = [aside.read_bytes()] if aside.exists() else []
        aside.write_bytes(b"".join([*kept, *(row + b"\n" for _, row in damaged)]))
        warn(f"{len(damaged)} of {count} lines of {file} are damaged, the first is line {damaged[0][0]}: "
             f"they are moved to {aside.name}")  # fmt: skip
    return lines


def losses(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of training steps."""
    return [line for line in lines if "loss" in line]


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of evaluations, with metrics such as "bbox/AP"."""
    return [line for line in lines if any("/" in name for name in line)]


def read_metrics(file: epath.Path, warn: Callable[[str], None]) -> dict[str, dict[str, float | None]] | None:
    """Returns the metrics of a finished run; None if there are none, with a warning if they are damaged."""
    if not file.exists():
        return None
    try:
        metrics = json.loads(read_bytes(file))
        if metrics and all(_is_number(value) for kind in metrics.values() for value in kind.values()):
            return metrics
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    warn(f"{file} is damaged, so the run is evaluated again")
    return None


def _parse(row: bytes) -> dict[str, Any] | None:
    """Returns a line as names and numbers; None for anything else."""
    try:
        line = json.loads(row.strip(_BLANK).decode("utf-8-sig"))
        return line if isinstance(line["step"], int) and all(map(_is_number, line.values())) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    """Returns whether a value can be plotted; None is an undefined metric."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and not abs(value) > 1e300) or value in (float("inf"), -float("inf"))
