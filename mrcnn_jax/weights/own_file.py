"""This library's own file of weights: a .safetensors that holds what a detector is, besides its arrays.

Arrays have the names of ``model.safetensors`` in a shared folder: collection, modules and name, such as
"params/backbone/res2_0/conv1/kernel". Kernels are [height, width, inputs, outputs], dense ones [inputs,
outputs]. The metadata entry "mrcnn_jax" is JSON of the experiment and of the classes and keypoints.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open

from mrcnn_jax.config import ModelConfig, from_dict, structure, to_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import expected_arrays
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights.folder import Weights, without_paths
from mrcnn_jax.weights.param_map import ParamMap, ParamSpec
from mrcnn_jax.weights.readers import write_tensors

SUFFIX = ".safetensors"
_ENTRY = "mrcnn_jax"


def write_own_file(file: Path, weights: Weights) -> None:
    """Writes a detector to a file; paths of this machine are left out."""
    arrays = flatten_dict(weights.variables, sep="/")
    about = {"experiment": to_dict(without_paths(weights.experiment)), "dataset": weights.info._asdict()}
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    write_tensors(file, arrays, {_ENTRY: json.dumps(about)})


def read_description(file: Path) -> Weights | None:
    """Returns what a file says besides its arrays, without variables; None for files of other libraries.

    Raises:
        InputError: the description is damaged.
    """
    about = _metadata(file).get(_ENTRY)
    if about is None:
        return None
    try:
        content = json.loads(about)
        experiment, info = content["experiment"], content["dataset"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged: it does not describe a detector of mrcnn_jax") from error
    return Weights(from_dict(experiment, str(file)), structure(info, DatasetInfo, str(file)), {})


def make_param_map(model: ModelConfig) -> ParamMap:
    """Returns the map of the arrays, which have the names and the layout of the model's."""
    return ParamMap({path: ParamSpec(path) for path in expected_arrays(model)})


def _metadata(file: Path) -> Mapping[str, str]:
    try:
        with safe_open(file, "numpy") as tensors:
            return tensors.metadata() or {}
    except (OSError, SafetensorError):  # of another format; what it is instead is found out elsewhere
        return {}
