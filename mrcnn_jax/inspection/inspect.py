"""Recognition of what a path is, and its report."""

import os
import re
from pathlib import Path

from mrcnn_jax import presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.dataset import is_prepared
from mrcnn_jax.errors import InputError
from mrcnn_jax.inspection.contents import Progress, open_contents
from mrcnn_jax.inspection.dataset import report_dataset
from mrcnn_jax.inspection.report import InspectionReport
from mrcnn_jax.inspection.run import is_run, report_run
from mrcnn_jax.paths import require_place
from mrcnn_jax.weights import zoo
from mrcnn_jax.weights.locate import cached

NEAR_DUPLICATES = 2000
"""Images of each split that are compared for near duplicates, unless others are asked for."""


def inspect(
    path: str | os.PathLike, experiment: str | None = None, *, near: int = NEAR_DUPLICATES, pictures: int = 0,
    progress: Progress | None = None,
) -> InspectionReport:  # fmt: skip
    """Makes the report of a data set, a run or weights.

    Args:
        path: prepared data set, what `mrcnn dataset` takes, directory of a run, of imported weights, of a
            model to share or of an exported detector, or a name of published weights that were
            downloaded before.
        experiment: name of an experiment or directory of a run, against which a data set is held; by default
            the one that `mrcnn dataset` proposes.
        near: images of each split of a data set that are compared for near duplicates.
        pictures: images of a data set's sheets; 0 draws no picture at all.
        progress: called while records are read; None shows no progress at all.

    Raises:
        InputError: it is nothing of these, cannot be read, or there is no such experiment.
    """
    given = _experiment(experiment) if experiment is not None else None
    place = _find(path)
    if "://" in os.fspath(place) or is_run(place) and not is_prepared(place):
        if given:
            raise InputError(f"{path} is no data set: --experiment is for data sets")
        return report_run(place, pictures=bool(pictures))
    if Path(place).is_file() and Path(place).suffix.lower() != ".json":
        raise InputError(f"{path} is no annotation file; `mrcnn import-weights` imports a file of weights")
    with open_contents(Path(place), progress) as contents:
        images = len(next(iter(contents.splits.values())).records)
        chosen = given or presets.get(presets.suggest(images))
        return report_dataset(Path(place), contents, chosen, near=near, pictures=pictures)


def _find(path: str | os.PathLike) -> str | os.PathLike:
    """Returns the place of what is named, which exists."""
    text = os.fspath(path)
    if re.match("hf://|https?://", text):
        raise InputError(f"{text} is an address: `mrcnn import-weights {text} --out DIR` imports it first")
    require_place(path, "what is inspected")
    if "://" in text or Path(text).exists():
        return path
    if text in zoo.ENTRIES:
        if directory := cached(text):
            return directory
        command = f"mrcnn import-weights {text} --out DIR"
        raise InputError(f"{text} is not on this machine yet: `{command}` downloads it")
    raise InputError(f"there is nothing at {text}")


def _experiment(name: str) -> Experiment:
    is_directory = name not in presets.PRESETS and Path(name).is_dir() and is_run(name)
    return (presets.stored_run(name) if is_directory else None) or presets.get(name)
