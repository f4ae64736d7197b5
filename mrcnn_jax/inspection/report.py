"""A report as sections of tables and pictures, shown in a terminal and as one self-contained HTML page."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mrcnn_jax.atomic_io import write_json, write_text
from mrcnn_jax.errors import printable
from mrcnn_jax.evaluation.report.html import escaped, grid, listing, page, picture, table

MAX_ROWS = 40
"""Rows of a table in a terminal; the page has all."""


@dataclass(frozen=True)
class Shown:
    """A picture in the content of a PNG or JPEG file."""

    content: bytes
    kind: str  # "png" or "jpeg"
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with a table of texts and whole numbers, and pictures, which the terminal does not show."""

    heading: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    note: str = ""
    left: Sequence[int] = (0,)  # columns that are aligned to the left
    pictures: Sequence[Shown] = ()
    wide: bool = False  # pictures one below the other


@dataclass(frozen=True)
class InspectionReport:
    """Findings, and what they were found in."""

    title: str
    subtitle: str
    findings: list[str]
    sections: list[Section]
    data: dict[str, Any] = field(default_factory=dict)  # plain containers, for JSON


def render(report: InspectionReport) -> RenderableType:
    """Returns a report for ``rich.print``: findings last, so that they stay visible in the terminal."""
    return Group(*_parts(report))


def _parts(report: InspectionReport) -> Iterator[RenderableType]:
    yield Text(f"{printable(report.title)}\n{printable(report.subtitle)}\n")
    for section in report.sections:
        if not section.rows:
            continue
        shown = Table(title=Text(section.heading, style="bold"), box=box.SIMPLE_HEAD, title_justify="left")
        for column, name in enumerate(section.header):
            left = column in section.left
            shown.add_column(Text(printable(name)), justify="left" if left else "right", overflow="fold")
        for row in section.rows[:MAX_ROWS]:
            shown.add_row(*(Text(printable(_text(cell))) for cell in row))
        yield shown
        if len(section.rows) > MAX_ROWS:
            yield Text(f"  {len(section.rows) - MAX_ROWS:,} more rows are in the page (--out).\n")
        if section.note:
            yield Text(f"  {printable(section.note)}\n")
    for finding in report.findings:
        yield Text(f"* {printable(finding)}")


def _text(cell: Any) -> str:
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def write_page(report: InspectionReport, path: str | os.PathLike) -> None:
    """Writes a report as one HTML file."""
    parts = [listing([printable(finding) for finding in report.findings])]
    for section in report.sections:
        if section.rows or section.pictures or section.note:
            parts.append(f"<h2>{escaped(section.heading)}</h2>")
        if section.note:
            parts.append(f'<p class="muted">{escaped(section.note, 1000)}</p>')
        if section.rows:
            parts.append(table(section.header, section.rows, left=section.left))
        figures = [picture(each.content, each.kind, each.caption) for each in section.pictures]
        if figures:
            parts.append("".join(figures) if section.wide else grid(figures))
    write_text(path, page(report.title, report.subtitle, "".join(parts)))


def write_data(report: InspectionReport, path: str | os.PathLike) -> None:
    """Writes what was found as JSON, which has no infinities and NaN: null stands for them."""
    findings = {"title": report.title, "findings": report.findings}
    write_json(path, _standard(findings | report.data))


def _standard(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _standard(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_standard(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
