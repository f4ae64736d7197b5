"""What was measured of the tables' systems: a file for each run, in results/tables/SCALE/SYSTEM_SEED.json."""

import json
from pathlib import Path
from typing import Any

from experiments.export_result import RESULTS
from mrcnn_jax.config import Experiment, to_dict

FOLDER = RESULTS / "tables"
COSTS = FOLDER / "costs.json"
"""What the systems cost at full size (experiments.costs)."""


def result_file(scale: str, system: str, seed: int, folder: Path = FOLDER) -> Path:
    """Where the result of a run is."""
    return folder / scale / f"{system}_{seed}.json"


def measured(scale: str, system: str, folder: Path = FOLDER) -> dict[int, dict[str, Any]]:
    """The results of a system by seed."""
    found = {}
    for file in sorted((folder / scale).glob(f"{system}_*.json")):
        seed = file.stem.removeprefix(f"{system}_")
        if seed.isdecimal():
            found[int(seed)] = json.loads(file.read_text())
    return found


def same_settings(content: dict[str, Any], experiment: Experiment) -> bool:
    """Whether a result is of an experiment, on however many devices."""
    return settings_of(content["experiment_of_one_device"]) == settings_of(to_dict(experiment))


def settings_of(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that determine a result: without logs, checkpoints, threads and directories.

    Of ``model.rpn.proposals_from`` only whether there is a separate RPN is kept.
    """
    ignored = {
        "train": ("log_every", "checkpoint_every", "keep_checkpoints", "stall_seconds", "compilation_cache", "init_from"),
        "data": ("threads",),
    }
    kept = {
        part: {name: value for name, value in fields.items() if name not in ignored.get(part, ())} if isinstance(fields, dict) else fields
        for part, fields in values.items()
        if part != "evaluation"
    }
    rpn = kept["model"]["rpn"]
    return kept | {"model": kept["model"] | {"rpn": rpn | {"proposals_from": bool(rpn["proposals_from"])}}}
