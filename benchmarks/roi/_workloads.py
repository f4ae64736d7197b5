"""What the RoI operations are measured on: feature maps, and RoIs as detectors meet them."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from mrcnn_jax.ops import assign_levels

PYRAMID = ((200, 336), (100, 168), (50, 84), (25, 42))  # P2 to P5 of an 800 x 1344 image


@dataclass(frozen=True)
class Workload:
    """RoIs on one or more feature maps of an image.

    Attributes:
        name: as in the tables.
        use: where detectors meet it.
        maps: height and width of each level.
        strides: image pixels per cell of each level.
        channels: of the features.
        rois: of each image.
        bins: along each side of a RoI.
        sizes: the square root of the RoIs' areas, in image pixels, is spread from here to here; evenly, or by its logarithm over a pyramid.
        training: whether it is differentiated.
    """

    name: str
    use: str
    maps: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    channels: int
    rois: int
    bins: int
    sizes: tuple[float, float]
    training: bool = True

    def features(self, batch: int, dtype: jnp.dtype, seed: int = 0) -> list[jnp.ndarray]:
        """Standard normal features of each level, [batch, height, width, channels]."""
        random = np.random.default_rng(seed)
        return [jnp.asarray(random.standard_normal((batch, *side, self.channels), dtype=np.float32), dtype) for side in self.maps]

    def boxes(self, batch: int, seed: int = 1) -> np.ndarray:
        """RoIs within the image, with aspect ratios from 1/2 to 2, [batch, rois, 4] in image pixels."""
        random = np.random.default_rng(seed)
        height, width = (side * self.strides[0] for side in self.maps[0])
        low, high = self.sizes
        share = random.uniform(size=(batch, self.rois))
        size = low + share * (high - low) if len(self.maps) == 1 else low * (high / low) ** share
        aspect = 2.0 ** random.uniform(-1, 1, size.shape)
        sides = np.stack([np.minimum(size * np.sqrt(aspect), width), np.minimum(size / np.sqrt(aspect), height)], axis=-1)
        corner = random.uniform(size=sides.shape) * (np.array([width, height]) - sides)
        return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)

    def levels(self, boxes: np.ndarray) -> np.ndarray:
        """The level of each RoI, counted from 0."""
        if len(self.maps) == 1:
            return np.zeros(boxes.shape[:-1], np.int32)
        return np.asarray(assign_levels(boxes, 2, 1 + len(self.maps))) - 2


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("one map", "512 RoIs of 20 to 320 pixels on P2 alone", PYRAMID[:1], (4,), 256, 512, 7, (20, 320)),
        Workload("C4", "box head on C4, Faster R-CNN's 300 proposals", PYRAMID[2:3], (16,), 1024, 300, 14, (20, 640)),
        Workload("FPN inference", "box head, 1,000 proposals", PYRAMID, (4, 8, 16, 32), 256, 1000, 7, (16, 800), training=False),
        Workload("FPN box training", "box head, 512 RoIs", PYRAMID, (4, 8, 16, 32), 256, 512, 7, (16, 800)),
        Workload("FPN mask training", "mask head, 128 RoIs", PYRAMID, (4, 8, 16, 32), 256, 128, 14, (16, 800)),
    )
}
TINY = Workload("tiny", "for tests", ((12, 16), (6, 8)), (4, 8), 8, 6, 3, (8, 48))
