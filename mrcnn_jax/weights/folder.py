"""A model as a folder to share: model.safetensors, experiment.json and dataset.json."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import Experiment, read_experiment, structure, to_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights.readers import read_tensors, write_tensors

TENSORS, EXPERIMENT, DATASET = "model.safetensors", "experiment.json", "dataset.json"
EXPORTED = "export.json"
"""Description of an exported detector (``inference.export``), whose folder has two or all of these files."""


class Weights(NamedTuple):
    """Content of a directory of weights: all of a model, or a part such as a backbone."""

    experiment: Experiment
    info: DatasetInfo
    variables: dict[str, Any]


def is_model_folder(directory: str | os.PathLike) -> bool:
    """Returns whether a directory is such a folder, and not a run."""
    path = epath.Path(directory)
    return (path / TENSORS).exists() and not (path / "checkpoints").exists()


def write_model_folder(directory: Path, weights: Weights) -> None:
    """Writes a model to a folder, which is made."""
    arrays = flatten_dict(weights.variables, sep="/")
    write_tensors(directory / TENSORS, {name: np.asarray(array) for name, array in arrays.items()})
    write_json(directory / EXPERIMENT, to_dict(weights.experiment))
    write_json(directory / DATASET, weights.info._asdict())


def read_model_folder(directory: str | os.PathLike) -> Weights:
    """Reads a folder that ``write_model_folder`` has written.

    Raises:
        InputError: a file is missing, damaged or does not fit.
    """
    experiment, info = read_description(directory)
    return Weights(experiment, info, unflatten_dict(read_tensors(Path(directory) / TENSORS), sep="/"))


def read_description(directory: str | os.PathLike) -> tuple[Experiment, DatasetInfo]:
    """Reads such a folder without its arrays.

    Raises:
        InputError: a file is missing, damaged or does not fit.
    """
    folder = Path(directory)
    experiment = read_experiment(folder / EXPERIMENT)
    try:
        content = json.loads(read_bytes(folder / DATASET))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder / DATASET} cannot be read: {reason}") from error
    return experiment, structure(content, DatasetInfo, str(folder / DATASET))


def read_shapes(directory: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a folder's arrays by path ("params.backbone..."), which are not read.

    Raises:
        InputError: the file is missing or damaged.
    """
    file = Path(directory) / TENSORS
    if not file.is_file():
        raise InputError(f"{file} is no file")
    try:
        with safe_open(file, "numpy") as tensors:
            names = tensors.keys()
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    return {name.replace("/", "."): shape for name, shape in shapes.items()}


def without_paths(experiment: Experiment) -> Experiment:
    """Returns the experiment with the last parts of paths, as the folders above are of no use elsewhere."""
    model, train = experiment.model, experiment.train
    rpn = replace(model.rpn, proposals_from=Path(model.rpn.proposals_from).name)
    return replace(
        experiment,
        model=replace(model, rpn=rpn),
        data=replace(experiment.data, dataset=Path(experiment.data.dataset).name),
        train=replace(train, init_from=Path(train.init_from).name),
    )
