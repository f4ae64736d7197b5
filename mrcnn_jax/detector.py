"""A trained model as a function from images to detections."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from mrcnn_jax.checkpoint import Checkpoints
from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.data.transforms import resize_and_pad
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.ops.keypoints import decode_keypoints
from mrcnn_jax.ops.paste import paste_masks, paste_rles
from mrcnn_jax.structures import DatasetInfo, Detections, Predictions


class Detector:
    """Detects objects in images; made by ``load``, or from variables at hand.

    Two programs are compiled at most, one for landscape and one for portrait images.
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
        padded, size = resize_and_pad(image, data.short_edge_test, data)
        predictions = compiled(self.experiment.model, self.experiment.train.dtype)(
            self.variables, padded[None], np.array([size], np.int32)
        )
        return to_detections(jax.tree.map(lambda leaf: np.asarray(leaf[0]), predictions), size, image.shape[:2], self.experiment.model)[0]


def load(directory: str | os.PathLike) -> Detector:
    """The detector of a run directory, from its newest checkpoint."""
    checkpoints = Path(directory) / "checkpoints"
    if not checkpoints.is_dir():
        raise InputError(f"{directory} holds no checkpoints: give the directory of a training run")
    manager = Checkpoints(checkpoints, read_only=True)
    step = manager.latest
    if step is None:
        raise InputError(f"{directory} holds no complete checkpoint yet")
    experiment, info, _ = manager.about(step)
    variables = jax.device_put(manager.restore_variables(step))
    manager.close()
    return Detector(experiment, info, variables)


@lru_cache(maxsize=8)
def compiled(config: ModelConfig, dtype: str, all_devices: bool = False):
    """(variables, images, sizes) -> Predictions, jitted for one device, or mapped over all local ones with a leading axis of devices."""
    apply = MaskRCNN(config, jnp.dtype(dtype)).apply
    return jax.pmap(apply, in_axes=(None, 0, 0)) if all_devices else jax.jit(apply)


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
        pasted = paste(predictions.masks[valid], boxes, *original)
        masks, rles = (None, pasted) if as_rle else (pasted, None)
    if predictions.keypoints is not None:
        keypoints = np.zeros((len(boxes), config.keypoint.num_keypoints, 3), np.float32)
        of_class = np.isin(classes, config.keypoint.classes)
        keypoints[of_class] = decode_keypoints(predictions.keypoints[valid][of_class], boxes[of_class])[..., [0, 1, 3]]
    return Detections(boxes=boxes, scores=predictions.scores[valid], class_ids=classes, masks=masks, keypoints=keypoints), rles
