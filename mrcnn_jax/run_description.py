"""Description of a run in each of its checkpoints: the experiment, the data set and the position in it."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from etils import epath

from mrcnn_jax.config import Experiment, read_experiment, structure, to_dict
from mrcnn_jax.data.contents import Contents
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.structures import DatasetInfo

_PACKAGES = "mrcnn_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"


class Description(NamedTuple):
    """Content of a checkpoint besides its arrays."""

    experiment: Experiment
    dataset: DatasetInfo
    images_seen: int
    digests: dict[str, int]  # of the arrays, by path
    contents: dict[str, Contents] | None = None  # of the splits trained and evaluated on, by name
    versions: dict[str, str] | None = None  # of what saved it; None before these were recorded

    def to_json(self) -> dict[str, Any]:
        """Returns plain containers."""
        contents = self.contents and {split: one._asdict() for split, one in self.contents.items()}
        parts = {"experiment": to_dict(self.experiment), "dataset": self.dataset._asdict()}
        return self._asdict() | parts | {"contents": contents}


def current_versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of the libraries that results depend on."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def parse_description(about: Any, origin: str) -> Description:
    """Returns what ``Description.to_json`` converted; unknown entries beside the experiment are ignored.

    Raises:
        InputError: an entry is missing or of another type, or the experiment has unknown fields.
    """
    return structure(about, Description, origin)


def newest_description(directory: str | os.PathLike) -> tuple[int, Description] | None:
    """Returns step and description of a run's newest checkpoint that has a readable one; None without any."""
    folder = epath.Path(directory) / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for step in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
        file = folder / str(step) / "about" / "metadata"
        try:
            return step, parse_description(json.loads(read_bytes(file)), f"checkpoint {folder / str(step)}")
        except (OSError, ValueError, RecursionError):  # the arrays of such a checkpoint are not used either
            continue
    return None


def edited_experiment(directory: str | os.PathLike, given: Experiment | None = None) -> str | None:
    """Returns a sentence if a run's experiment.json differs from its newest checkpoint's; otherwise None.

    Args:
        directory: of a run or of imported weights.
        given: the experiment to train, which a run that was stopped before its next checkpoint may have
            written; None compares only what matters after the training.
    """
    file, newest = epath.Path(directory) / "experiment.json", newest_description(directory)
    if newest is None or not file.exists():
        return None
    advice = "the file has no effect; give settings as options, such as --model.box.score-threshold 0.5"
    try:
        edited, used = read_experiment(file), newest[1].experiment
    except InputError as error:
        return f"{error}: {advice}"
    changed = [] if edited == given else differing_fields(to_dict(edited), to_dict(used))
    changed = [name for name in changed if given or name.startswith(("model.", "data.", "evaluation."))]
    if not changed:
        return None
    names = ", ".join(changed[:3]) + ", ..." * (len(changed) > 3)
    return f"{file} differs from the experiment of the newest checkpoint in {names}: {advice}"


def differing_fields(one: Any, other: Any, name: str = "") -> list[str]:
    """Returns the dotted names of the fields in which two experiments, as plain containers, differ."""
    if not isinstance(one, dict):
        return [] if one == other else [name]
    return [
        field
        for key in one
        for field in differing_fields(one[key], other[key], f"{name}.{key}" if name else key)
    ]
