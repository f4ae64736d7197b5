"""Tables 1 to 9 of the paper and related differences, from paper.json: rows with the systems that stand for
them, and comparisons."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from experiments.systems import SYSTEMS, System

PAPER = Path(__file__).with_name("paper.json")


class Row(NamedTuple):
    """A row of a table; one without a system is quoted from the paper only."""

    name: str
    metrics: Mapping[str, Mapping[str, float]]
    """The paper's figures, by kind of metrics and name."""
    system: System | None = None
    note: str = ""


class Comparison(NamedTuple):
    """Two rows of a table, the better one (in the paper) first, and the figure by which they are compared."""

    better: str
    other: str
    metrics: str
    figure: str


@dataclass(frozen=True)
class Table:
    """A table of the paper, and the comparisons that its claim rests on."""

    key: str
    title: str
    claim: str
    """Conclusion of the paper."""
    split: str
    """Images that the paper's figures are for."""
    verified: bool
    """Figures were checked against a copy of the paper."""
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    source: str = ""
    """Publications that the figures are from, if it is not the paper."""

    def systems(self) -> dict[str, System]:
        """Returns the systems of the rows that can be trained, by row name."""
        return {row.name: row.system for row in self.rows if row.system}

    def paper(self, row: str) -> Mapping[str, Mapping[str, float]]:
        """Returns the paper's figures of a row."""
        return next(each.metrics for each in self.rows if each.name == row)


def load_tables(path: Path = PAPER) -> dict[str, Table]:
    """Loads the tables, by key."""
    tables = {}
    for key, content in json.loads(path.read_text()).items():
        rows = []
        for name, row in content.pop("rows").items():
            system = SYSTEMS[row["system"]] if "system" in row else None
            rows.append(Row(name, row["metrics"], system, row.get("note", "")))
        comparisons = tuple(Comparison(*each) for each in content.pop("comparisons"))
        tables[key] = Table(key, rows=tuple(rows), comparisons=comparisons, **content)
    return tables


TABLES = load_tables()


def all_systems(of_paper: bool = False) -> dict[str, System]:
    """Returns every system of the tables by name, each after its prerequisites.

    Args:
        of_paper: only those of the paper's own tables.
    """
    return {
        each.name: each
        for table in TABLES.values()
        if not (of_paper and table.source)
        for system in table.systems().values()
        for each in (*system.prerequisites(), system)
    }
