"""A trained model as a function from an image to its detections."""

import os
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mrcnn_jax.checkpoint import CheckpointStore, run_directory
from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.runtime import enable_compilation_cache
from mrcnn_jax.structures import DatasetInfo, Detections
from mrcnn_jax.typing import UInt8


class Detector:
    """Detects objects in images; ``load`` makes one.

    Two programs are compiled, one for landscape and one for portrait images; or one for each padded size if
    ``data.padding_divisor`` is set.

    Attributes:
        experiment: configuration that the model was trained with.
        info: classes and keypoints of the data set that it was trained on.
        variables: of the model, on the device.
    """

    def __init__(self, experiment: Experiment, info: DatasetInfo, variables: dict[str, Any]):
        self.experiment, self.info, self.variables = experiment, info, variables

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
        predictions = compiled(model, dtype)(self.variables, padded[None], np.array([size], np.int32))
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


def load(directory: str | os.PathLike) -> Detector:
    """Loads the detector of a training run, from its newest checkpoint, or of imported weights.

    Compiled programs are kept on disk for later processes (``runtime.enable_compilation_cache``).

    Raises:
        InputError: the directory holds no weights, or only a part of a model, such as a backbone.
    """
    enable_compilation_cache()
    weights = read_weights(directory)
    held = flatten_dict(weights.variables, sep="/").keys()
    missing = sorted(expected_arrays(weights.experiment.model) - held)
    if missing:
        raise InputError(
            f"{directory} holds a part of a model only, such as a backbone, that training can start from "
            f"(--train.init-from); {len(missing)} arrays are missing, the first is {missing[0]}"
        )
    return Detector(weights.experiment, weights.info, jax.device_put(weights.variables))


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
        saved = checkpoints.restore_latest(lambda message: print(f"Warning: {message}.", file=sys.stderr))
    if saved is None:
        raise InputError(f"{directory} holds no complete checkpoint yet")
    return Weights(saved.experiment, saved.info, saved.variables)


def expected_arrays(model: ModelConfig) -> set[str]:
    """Returns the paths of all arrays of a model's variables, such as "params/backbone/stem/kernel"."""
    variables = jax.eval_shape(lambda: init_variables(MaskRCNN(model), jax.random.key(0)))
    return set(flatten_dict(variables, sep="/"))


@lru_cache(maxsize=8)
def compiled(model: ModelConfig, dtype: str, all_devices: bool = False):
    """Returns the model as a compiled function (variables, images, sizes) -> Predictions.

    Args:
        model: configuration of the model.
        dtype: precision of the computation, "float32" or "bfloat16".
        all_devices: map it over all devices of this process; images and sizes have a leading axis of devices.
    """
    apply = MaskRCNN(model, jnp.dtype(dtype)).apply
    if all_devices:
        return jax.pmap(apply, in_axes=(None, 0, 0), devices=jax.local_devices())
    return jax.jit(apply)
