"""From the model's predictions to detections in pixels of the image as given, for detector and evaluator."""

import numpy as np

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.detections import Detections
from mrcnn_jax.inference.paste_rles import paste_rles
from mrcnn_jax.ops.keypoints import decode_keypoints
from mrcnn_jax.structures import Predictions
from mrcnn_jax.typing import Float

Size = tuple[int, int]
"""Height and width of an image."""


def to_detections(
    predictions: Predictions, size: Size, original_size: Size, config: ModelConfig,
    class_names: tuple[str, ...] = (),
) -> Detections:  # fmt: skip
    """Scales boxes back, pastes masks and decodes keypoints of one image.

    Args:
        predictions: NumPy arrays without the batch axis.
        size: of the resized image.
        original_size: of the image as given.
        config: the model's.
        class_names: name of each class id, carried along.
    """
    valid, scale = predictions.valid, _scale(size, original_size)
    boxes, classes = predictions.boxes[valid] * scale, predictions.classes[valid]
    pasted = keypoints = None
    if predictions.masks is not None:
        threshold, convention = config.mask.threshold, config.conventions.mask_paste
        pasted = paste_rles(predictions.masks[valid], boxes, *original_size, threshold, convention)
    if predictions.keypoints is not None:
        keypoints = np.zeros((len(boxes), config.keypoint.num_keypoints, 3), np.float32)
        of_class = np.isin(classes, config.keypoint.classes)
        score = 3 if config.conventions.keypoint_score == "probability" else 2
        # in pixels of the resized image, as in the libraries: a map is enlarged to its predicted box
        found = decode_keypoints(predictions.keypoints[valid][of_class], predictions.boxes[valid][of_class])
        keypoints[of_class] = found[..., [0, 1, score]] * np.append(scale[:2], np.float32(1))
    return Detections(boxes, predictions.scores[valid], classes, pasted, keypoints, class_names)


def _scale(size: Size, original_size: Size) -> Float[np.ndarray, "4"]:
    return np.array([original_size[1] / size[1], original_size[0] / size[0]] * 2, np.float32)
