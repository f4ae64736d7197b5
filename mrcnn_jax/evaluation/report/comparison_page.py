"""Comparison of two evaluations as a table, as a sentence, and as files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mrcnn_jax.atomic_io import write_json, write_text
from mrcnn_jax.errors import printable
from mrcnn_jax.evaluation.analysis.comparison import LEVEL
from mrcnn_jax.evaluation.report.findings import NAMES
from mrcnn_jax.evaluation.report.html import listing, page, shown, table

COMPARISON_FILES = "comparison.json", "comparison.html"
_HEADER = "first", "second", "difference", f"{100 * LEVEL:.0f} % interval"


def comparison_table(kind: str, found: Mapping[str, Any], names: tuple[str, str]) -> Table:
    """Makes a table of the metrics of one kind, for ``rich.print``."""
    title = printable(f"{NAMES[kind]}: {names[0]} and {names[1]}")
    result = Table(title=Text(title, "table.title"))  # a text is no markup
    result.add_column("metric")
    for header in _HEADER:
        result.add_column(header, justify="right")
    for row in _rows(found["metrics"]):
        result.add_row(*row)
    return result


def verdict(kind: str, found: Mapping[str, Any]) -> str:
    """Returns a sentence on whether the second is better than the first."""
    row = found["metrics"]["AP"]
    if row["low"] is None:
        return f"{NAMES[kind]}: AP is not defined."
    clear = row["low"] > 0 or row["high"] < 0
    better = "better" if row["difference"] > 0 else "worse"
    judgement = f"the second is {better}" if clear else "no clear difference"
    interval = f"{100 * LEVEL:.0f} % interval {row['low']:+.1f} to {row['high']:+.1f}"
    return f"{NAMES[kind]}: {judgement}; AP differs by {row['difference']:+.1f} ({interval})."


def write_comparison(
    out: str | os.PathLike, found: Mapping[str, Mapping[str, Any]], names: tuple[str, str]
) -> None:
    """Writes comparison.json and comparison.html to a directory."""
    write_json(Path(out) / COMPARISON_FILES[0], {"first": names[0], "second": names[1], "kinds": found})
    parts = [listing([verdict(kind, each) for kind, each in found.items()])]
    for kind, each in found.items():
        parts += [f"<h2>{NAMES[kind]}</h2>", table(("metric", *_HEADER), _rows(each["metrics"]))]
        errors = [(row[0].replace("_", " "), *row[1:-1]) for row in _rows(each["errors"])]
        parts += ["<h3>AP50 lost to each kind of error</h3>", table(("error", *_HEADER[:-1]), errors)]
        classes = sorted(each["classes"].items(), key=lambda item: item[1]["difference"] or 0)
        parts += ["<h3>AP of each class</h3>", table(("class", *_HEADER), _rows(dict(classes)))]
    subtitle = f"First: {names[0]}. Second: {names[1]}. Intervals come of drawing images with replacement."
    html = page("Comparison of two evaluations", subtitle, "".join(parts))
    write_text(Path(out) / COMPARISON_FILES[1], html)


def _rows(rows: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, ...]]:
    """Returns the cells of a table: name, first, second, difference, interval."""
    cells = []
    for name, row in rows.items():
        difference, low, high = (
            "–" if row[key] is None else f"{row[key]:+.1f}" for key in ("difference", "low", "high")
        )
        interval = "–" if row["low"] is None else f"{low} to {high}"
        cells.append((name, shown(row["first"]), shown(row["second"]), difference, interval))
    return cells
