"""A trained model as a function from an image to its detections."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, PartitionSpec

from mrcnn_jax.checkpoint import CheckpointStore, edited_experiment, run_directory
from mrcnn_jax.compiled_programs import StoredFunction
from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.inference.settings import with_settings
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.run_description import newest_description
from mrcnn_jax.runtime import enable_compilation_cache
from mrcnn_jax.structures import DatasetInfo, Detections
from mrcnn_jax.typing import UInt8

MAX_PROGRAMS = 16
"""Compiled programs in memory, one for each padded size: each takes tens of megabytes and hundreds of memory
maps, of which a process has 65,530."""


class Detector:
    """Detects objects in images; ``load`` makes one.

    Two programs are compiled, one for landscape and one for portrait images; or one for each padded size if
    ``data.padding_divisor`` is set, of which ``MAX_PROGRAMS`` stay in memory.

    Attributes:
        experiment: configuration that the model was trained with, and its settings.
        info: classes and keypoints of the data set that it was trained on.
        variables: of the model, on the device.
        programs: directory in which compiled programs are stored, if any.
    """

    def __init__(
        self, experiment: Experiment, info: DatasetInfo, variables: dict[str, Any], programs: Any = None
    ):
        self.experiment, self.info, self.variables = experiment, info, variables
        self.programs = programs

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id; a region proposal network alone finds objects of class 0, "object"."""
        return self.info.category_names if self.experiment.model.tasks else ("object",)

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Detects objects in an RGB image.

        Returns:
            Detections in the image's own pixels, best first.

        Raises:
            InputError: the image is not a uint8 array of shape [H, W, 3].
        """
        image = np.asarray(image)
        _check_image(image)
        model, dtype = self.experiment.model, self.experiment.train.dtype
        size, padded_size = inference_sizes(*image.shape[:2], self.experiment.data, model.conventions)
        padded = resize_and_pad(image, size, padded_size, model.conventions)
        predict = compiled(model, dtype, directory=self.programs)
        with explaining_exhaustion():
            predictions = predict(self.variables, padded[None], np.array([size], np.int32))
            predictions = jax.device_get(predictions).image(0)
        return to_detections(predictions, size, image.shape[:2], model, self.class_names)


def _check_image(image: np.ndarray) -> None:
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return
    hints = {
        "read the file with mrcnn_jax.data.image_io.read_image": image.dtype.kind in "US",
        "pass the images of a batch one at a time": image.ndim == 4,
        "repeat the channel of a gray image": image.ndim == 2 or image.shape[2:] == (1,),
        "drop the alpha channel": image.ndim == 3 and image.shape[2] == 4,
        "move the channels last": image.ndim == 3 and image.shape[0] in (1, 3, 4),
        "levels are 0 to 255": image.dtype != np.uint8,
    }
    hint = next((f" ({hint})" for hint, applies in hints.items() if applies), "")
    given = f"{image.dtype} of shape {list(image.shape)}"
    raise InputError(f"an image must be uint8 RGB of shape [H, W, 3], not {given}{hint}")


def load(
    directory: str | os.PathLike, settings: Mapping[str, Any] = MappingProxyType({}), *,
    store_programs: bool = False,
) -> Detector:  # fmt: skip
    """Loads the detector of a training run, from its newest checkpoint, or of imported weights.

    Compiled programs are kept on disk for later processes (``runtime.enable_compilation_cache``).

    Args:
        directory: of the run or of the imported weights.
        settings: values by name that replace those of the experiment, such as
            ``{"model.box.score_threshold": 0.3, "data.short_edge_test": 640}``; those of
            ``inference.settings.SETTINGS`` may change.
        store_programs: keep the programs traced and compiled (``StoredFunction``), which makes later starts
            faster; not for processes that replace functions at run time.

    Raises:
        InputError: the directory holds no weights, or only a part of a model, such as a backbone; or a
            setting is not allowed.
    """
    if described := newest_description(directory):  # mistakes are found before arrays are read
        with_settings(described[1].experiment, settings)
    cache = enable_compilation_cache()
    weights = read_weights(directory)
    experiment = with_settings(weights.experiment, settings)
    if edited := edited_experiment(directory):
        print_warning(edited)
    held = flatten_dict(weights.variables, sep="/").keys()
    missing = sorted(expected_arrays(weights.experiment.model) - held)
    if missing:
        raise InputError(
            f"{directory} holds a part of a model only, such as a backbone, that training can start from "
            f"(--train.init-from); {len(missing)} arrays are missing, the first is {missing[0]}"
        )
    programs = cache / "programs" if cache and store_programs and jax.process_count() == 1 else None
    return Detector(experiment, weights.info, jax.device_put(weights.variables), programs)


def print_warning(message: object) -> None:
    """Prints a warning to stderr."""
    print(f"Warning: {printable(message)}", file=sys.stderr, flush=True)


@contextmanager
def explaining_exhaustion() -> Iterator[None]:
    """Turns the end of the device's memory into an InputError that says what helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        advice = "lower --data.short-edge-test and --data.long-edge, or --evaluation.images-per-device"
        raise InputError(f"out of device memory: {advice} ({reason})") from error


class Weights(NamedTuple):
    """Content of a directory of weights: all of a model, or a part such as a backbone."""

    experiment: Experiment
    info: DatasetInfo
    variables: dict[str, Any]


def read_weights(directory: str | os.PathLike) -> Weights:
    """Reads the newest checkpoint of a training run, or imported weights.

    Raises:
        InputError: the directory holds neither.
    """
    path = run_directory(directory) / "checkpoints"
    if not path.is_dir():
        needed = "give the directory of a training run or of imported weights"
        raise InputError(f"{directory} holds no checkpoints: {needed}")
    with CheckpointStore(path, read_only=True) as checkpoints:
        saved = checkpoints.restore_latest(print_warning)
    if saved is None:
        raise InputError(f"{directory} holds no complete checkpoint yet")
    return Weights(saved.experiment, saved.info, saved.variables)


def expected_arrays(model: ModelConfig) -> set[str]:
    """Returns the paths of all arrays of a model's variables, such as "params/backbone/stem/kernel"."""
    variables = jax.eval_shape(lambda: init_variables(MaskRCNN(model), jax.random.key(0)))
    return set(flatten_dict(variables, sep="/"))


@lru_cache(maxsize=8)
def compiled(
    model: ModelConfig, dtype: str, all_devices: bool = False, directory: Any = None
) -> StoredFunction:  # fmt: skip
    """Returns the model as a compiled function (variables, images, sizes) -> Predictions.

    Args:
        model: configuration of the model.
        dtype: precision of the computation, "float32" or "bfloat16".
        all_devices: map it over all devices of this process; images and sizes have a leading axis of devices.
        directory: of stored programs, if any.
    """

    def make_function() -> jax.stages.Wrapped:
        def apply(variables, images, sizes):
            return MaskRCNN(model, jnp.dtype(dtype)).apply(variables, images, sizes)

        def apply_row(variables, images, sizes):
            return jax.tree.map(lambda leaf: leaf[None], apply(variables, images[0], sizes[0]))

        if not all_devices:
            return jax.jit(apply)
        # not pmap, which never frees the programs of a function
        rows = PartitionSpec(DEVICE_AXIS)
        in_specs = PartitionSpec(), rows, rows
        return jax.jit(jax.shard_map(apply_row, mesh=local_mesh(), in_specs=in_specs, out_specs=rows,
                                     check_vma=False))  # fmt: skip

    key = f"inference {all_devices} {dtype} {model}"
    return StoredFunction(make_function, directory, key, limit=MAX_PROGRAMS)


def local_mesh() -> Mesh:
    """Returns the devices of this process as a mesh of one axis."""
    return Mesh(np.array(jax.local_devices()), (DEVICE_AXIS,))
