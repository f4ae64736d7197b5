"""Result files: where they are, what they must have in common with an experiment, and figures over seeds.

A run of a table's system has a file results/tables/SCALE/SYSTEM_SEED.json, any other published run
results/NAME.json.
"""

import json
from collections.abc import Mapping
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from experiments.rows import Comparison, Table
from mrcnn_jax.config import Experiment, to_dict

RESULTS = Path(__file__).parent / "results"
TABLES_FOLDER = RESULTS / "tables"
COSTS = TABLES_FOLDER / "costs.json"
"""Costs of the systems at full size, by experiments.costs."""
RECIPE_COSTS = TABLES_FOLDER / "recipe_costs.json"
"""Costs of the recipes after the paper, likewise."""
EVIDENCE = RESULTS / "evidence"
"""Results of experiments.evidence, on real photos."""
REMARKS = TABLES_FOLDER / "remarks.json"
"""Explanations of results, by table and scale, and pictures of them, by table."""
METRICS = {
    "segm": "mask", "bbox": "box", "keypoints": "keypoint",
    "cityscapes_val": "Cityscapes val", "cityscapes_test": "Cityscapes test",
}  # fmt: skip
"""Kinds of metrics, with their names on pages."""
IGNORED = {
    "train": (
        "log_every", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "stall_seconds",
        "compilation_cache", "init_from",
    ),
    "data": ("threads",),
}  # fmt: skip
"""Fields that do not determine a result."""

SeedResults = Mapping[int, Mapping[str, Any]]
"""Result files of a system, by seed."""


class Figures(NamedTuple):
    """One figure of a row, or the difference of two rows, over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean(self.values)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over seeds; NaN for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else nan

    def __format__(self, spec: str) -> str:
        spread = f" ± {self.deviation:{spec.lstrip('+')}}" if len(self.values) > 1 else ""
        return f"{self.mean:{spec}}{spread}"


def result_file(scale: str, system: str, seed: int, folder: Path = TABLES_FOLDER) -> Path:
    """Returns the path of the result file of a run."""
    return folder / scale / f"{system}_{seed}.json"


def load_seeds(scale: str, system: str, folder: Path = TABLES_FOLDER) -> dict[int, dict[str, Any]]:
    """Loads the result files of a system, by seed."""
    found = {}
    for file in sorted((folder / scale).glob(f"{system}_*.json")):
        seed = file.stem.removeprefix(f"{system}_")
        if seed.isdecimal():
            found[int(seed)] = json.loads(file.read_text())
    return found


def load_rows(table: Table, scale: str, folder: Path = TABLES_FOLDER) -> dict[str, dict[int, dict[str, Any]]]:
    """Loads the results of a table's rows, by row and seed; rows without results are left out."""
    found = {name: load_seeds(scale, system.name, folder) for name, system in table.systems().items()}
    return {name: results for name, results in found.items() if results}


def load_runs(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Loads the results of single runs, by the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}


def figures_of(results: SeedResults, metrics: str, figure: str) -> Figures | None:
    """Returns a figure of a row over its seeds; None if no run has it."""
    found = (result["metrics"].get(metrics, {}).get(figure) for result in results.values())
    values = tuple(value for value in found if value is not None)
    return Figures(values) if values else None


def difference_of(rows: Mapping[str, SeedResults], comparison: Comparison) -> Figures | None:
    """Returns the difference of two rows; None unless both were measured.

    Runs of the same seed share data order and initial weights, so they are compared with each other; without
    a common seed the difference is that of the means.
    """
    name = comparison.metrics, comparison.figure
    better, other = (rows.get(row, {}) for row in (comparison.better, comparison.other))
    seeds = sorted(better.keys() & other.keys())
    pairs = [[figures_of({seed: row[seed]}, *name) for row in (better, other)] for seed in seeds]
    differences = tuple(a.mean - b.mean for a, b in pairs if a and b)
    if differences:
        return Figures(differences)
    a, b = figures_of(better, *name), figures_of(other, *name)
    return Figures((a.mean - b.mean,)) if a and b else None


def hardware_of(result: Mapping[str, Any]) -> str:
    """Returns the devices that a run used, "2 CPU cores" where these were the only ones."""
    return result["hardware"].removeprefix("1 x cpu (cpu), ")


def paper_difference(table: Table, comparison: Comparison) -> float:
    """Returns the difference of two rows in the paper."""
    better, other = (table.paper(row)[comparison.metrics][comparison.figure]
                     for row in (comparison.better, comparison.other))  # fmt: skip
    return better - other


def has_result(file: Path, experiment: Experiment) -> bool:
    """Returns whether a result file exists and belongs to an experiment (``same_settings``)."""
    return file.exists() and same_settings(json.loads(file.read_text()), experiment)


def same_settings(content: Mapping[str, Any], experiment: Experiment) -> bool:
    """Returns whether a result belongs to an experiment, on whatever number of devices it was run."""
    found, wanted = content["experiment_of_one_device"], to_dict(experiment)
    views = [(each["evaluation"].get("tta_scales", []), each["evaluation"].get("tta_flip", False))
             for each in (found, wanted)]  # fmt: skip
    return settings_of(found) == settings_of(wanted) and views[0] == views[1]


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of an experiment that determine a result; absent ones, of older files, by default.

    Of ``model.rpn.proposals_from`` only whether there is a separate RPN is kept.
    """
    values = _with_defaults(values, to_dict(Experiment()))
    kept = {
        part: {name: value for name, value in fields.items() if name not in IGNORED.get(part, ())}
        if isinstance(fields, Mapping) else fields
        for part, fields in values.items()
        if part != "evaluation"
    }  # fmt: skip
    rpn = kept["model"]["rpn"]
    return kept | {"model": kept["model"] | {"rpn": rpn | {"proposals_from": bool(rpn["proposals_from"])}}}


def _with_defaults(values: Any, defaults: Any) -> Any:
    if not isinstance(defaults, Mapping):
        return values
    return defaults | {name: _with_defaults(value, defaults.get(name)) for name, value in values.items()}
