"""A trained model as a function from images to detections."""

import os
import sys
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8

from mrcnn_jax.checkpoint import Checkpoints, run_directory
from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.paste import paste_masks, paste_rles
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.ops.keypoints import decode_keypoints
from mrcnn_jax.structures import DatasetInfo, Detections, Predictions


class Detector:
    """Detects objects in images; made by ``load``, or from variables at hand.

    Two programs are compiled, one for landscape and one for portrait images, or one for each padded size (``data.padding_divisor``).
    """

    def __init__(self, experiment: Experiment, info: DatasetInfo, variables: dict[str, Any]):
        self.experiment, self.info, self.variables = experiment, info, variables

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id."""
        return self.info.category_names

    def __call__(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Detections in an RGB image, in its own pixels, best first."""
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"an image must be uint8 RGB of shape [H, W, 3], not {image.dtype} of shape {list(image.shape)}")
        data = self.experiment.data
        conventions = self.experiment.model.conventions
        size, padded = inference_sizes(*image.shape[:2], data, conventions)
        canvas = resize_and_pad(image, size, padded, conventions)
        predictions = compiled(self.experiment.model, self.experiment.train.dtype)(
            self.variables, canvas[None], np.array([size], np.int32)
        )
        return to_detections(jax.tree.map(lambda leaf: np.asarray(leaf[0]), predictions), size, image.shape[:2], self.experiment.model)[0]


def load(directory: str | os.PathLike) -> Detector:
    """The detector of a run directory, from its newest checkpoint, or of imported weights. InputError where there is none, or only a part."""
    weights = read_weights(directory)
    missing = sorted(expected_arrays(weights.experiment.model) - flatten_dict(weights.variables, sep="/").keys())
    if missing:
        raise InputError(
            f"{directory} holds a part of a model only, such as a backbone, that training can start from (--train.init-from); "
            f"{len(missing)} arrays are missing, the first is {missing[0]}"
        )
    return Detector(weights.experiment, weights.info, jax.device_put(weights.variables))


class Weights(NamedTuple):
    """What a directory holds: all of a model, or a part such as a backbone."""

    experiment: Experiment
    info: DatasetInfo
    variables: dict[str, Any]


def read_weights(directory: str | os.PathLike) -> Weights:
    """The newest checkpoint of a run directory, or imported weights. InputError where there are none."""
    checkpoints = run_directory(directory) / "checkpoints"
    if not checkpoints.is_dir():
        raise InputError(f"{directory} holds no checkpoints: give the directory of a training run, or of imported weights")
    manager = Checkpoints(checkpoints, read_only=True)
    saved = manager.newest(lambda message: print(f"Warning: {message}.", file=sys.stderr))
    manager.close()
    if saved is None:
        raise InputError(f"{directory} holds no complete checkpoint yet")
    return Weights(saved.experiment, saved.info, saved.variables)


def expected_arrays(model: ModelConfig) -> set[str]:
    """Paths, "params/backbone/stem/kernel", of all arrays of a model's variables."""
    return set(flatten_dict(jax.eval_shape(lambda: initialise(MaskRCNN(model), jax.random.key(0))), sep="/"))


@lru_cache(maxsize=8)
def compiled(config: ModelConfig, dtype: str, all_devices: bool = False):
    """(variables, images, sizes) -> Predictions, jitted for one device, or mapped over all devices of this process with a leading axis of devices."""
    apply = MaskRCNN(config, jnp.dtype(dtype)).apply
    return jax.pmap(apply, in_axes=(None, 0, 0), devices=jax.local_devices()) if all_devices else jax.jit(apply)


def to_detections(
    predictions: Predictions, size: tuple[int, int], original: tuple[int, int], config: ModelConfig, as_rle: bool = False
) -> tuple[Detections, list[dict] | None]:
    """Predictions of one image (no batch axis, NumPy) as Detections in pixels of the original image.

    ``size``, ``original``: height and width of the resized and of the original image. With ``as_rle`` the masks come as COCO run-length
    codes beside detections that have none themselves, which saves the full-size images.
    """
    valid = np.asarray(predictions.valid)
    scale = np.array([original[1] / size[1], original[0] / size[0]] * 2, np.float32)
    boxes, classes = predictions.boxes[valid] * scale, predictions.classes[valid]
    masks = rles = keypoints = None
    if predictions.masks is not None:
        paste = paste_rles if as_rle else paste_masks
        pasted = paste(predictions.masks[valid], boxes, *original, convention=config.conventions.mask_paste)
        masks, rles = (None, pasted) if as_rle else (pasted, None)
    if predictions.keypoints is not None:
        keypoints = np.zeros((len(boxes), config.keypoint.num_keypoints, 3), np.float32)
        of_class = np.isin(classes, config.keypoint.classes)
        score = 3 if config.conventions.keypoint_score == "probability" else 2
        # in pixels of the resized image, as in the libraries: a map is enlarged to the box that it was predicted for
        found = decode_keypoints(predictions.keypoints[valid][of_class], predictions.boxes[valid][of_class])
        keypoints[of_class] = found[..., [0, 1, score]] * np.append(scale[:2], np.float32(1))
    return Detections(boxes=boxes, scores=predictions.scores[valid], class_ids=classes, masks=masks, keypoints=keypoints), rles
