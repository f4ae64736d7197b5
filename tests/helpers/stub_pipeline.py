"""A stand-in for the pipeline of a detector: finds a cat in the upper left corner of every image."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from mrcnn_jax.detections import Detections
from mrcnn_jax.inference.stream import PreparedImage, ScaledImage
from mrcnn_jax.structures import DatasetInfo

INFO = DatasetInfo(
    "things", (3, 90), ("cat", "dog"), ("nose", "tail"), skeleton=((0, 1),), keypoint_classes=(0,)
)
SCORES = np.float32([0.75, 0.25])


class StubPipeline:
    """Computes batches of landscape or of portrait images, and appends their sources to ``batches``.

    Args:
        batches: stands in for the detector.
        batch_size: maximum number of images of a batch.
    """

    experiment = SimpleNamespace(data=SimpleNamespace(threads=2))

    def __init__(self, batches: list[list[Any]], batch_size: int = 1):
        self._batches, self.batch_size = batches, batch_size

    def prepare(self, source: Any, decode: Callable[[Any], np.ndarray]) -> PreparedImage:
        image = decode(source)
        height, width = image.shape[:2]
        padded = np.zeros((1, 2, 3) if width >= height else (2, 1, 3), np.uint8)
        return PreparedImage(source, image, (height, width), (ScaledImage((1, 1), padded),))

    def start(self, batch: list[PreparedImage]) -> Callable[[], list[Detections]]:
        self._batches.append([one.source for one in batch])
        return lambda: [find(one.image) for one in batch]


def find(image: np.ndarray) -> Detections:
    """Returns a certain and a doubtful cat, by the image's size."""
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[:, :2, :3] = True
    points = np.float32([[[1, 1, 0.5], [2, 1, 0]]] * 2)
    boxes, classes = np.float32([[0, 0, 3, 2]] * 2), np.zeros(2, int)
    return Detections(boxes, SCORES, classes, masks, points, INFO.category_names)
