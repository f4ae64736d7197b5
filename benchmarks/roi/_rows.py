"""Rows of the RoI operations' result files: selection, grouping and names for tables and plots."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

FORWARD, BACKWARD = "forward", "forward+backward"
TORCHVISION = "torchvision"
OPERATION = ("operation", "reduction", "samples")
Row = Mapping[str, Any]


def select(rows: Iterable[Row], **fields: Any) -> list[Row]:
    """Returns the rows with these values."""
    return [row for row in rows if all(row.get(name) == value for name, value in fields.items())]


def group_by(rows: Iterable[Row], *fields: str) -> dict[tuple, list[Row]]:
    """Groups rows by the values of fields, in the order of their first rows."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(field) for field in fields), []).append(row)
    return groups


def by_direction(rows: Iterable[Row], **fields: Any) -> dict[str, Row]:
    """Returns the rows of one implementation that have figures, by direction."""
    return {row["direction"]: row for row in select(rows, **fields) if "unavailable" not in row}


def timed(content: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of a result file that were run, not only compiled."""
    return [row for row in content["rows"] if "median_ms" in row]


def title(key: tuple[str, str, int | None]) -> str:
    """Names an operation."""
    operation, reduction, samples = key
    if operation in (names := {"pool": "RoIPool", "ps-pool": "position-sensitive RoIPool"}):
        return names[operation]
    names = {"align": "RoIAlign", "warp": "RoIWarp", "ps-align": "position-sensitive RoIAlign"}
    name = names[operation]
    sampling = f" of {samples} x {samples}" if samples else ", adaptive"
    return f"{name}, {'maximum' if reduction == 'max' else reduction}{sampling}"


def pair(cells: Mapping[str, Row], text: Callable[[Row], str | None]) -> str:
    """Renders both directions as "forward / backward", or the only one."""
    values = [text(cells[direction]) for direction in (FORWARD, BACKWARD) if direction in cells]
    return " / ".join(value or "-" for value in values) if any(values) else "-"
