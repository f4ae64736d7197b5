"""Feature maps and RoIs, as detectors meet them, on which the RoI operations are measured."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from benchmarks.roi._rows import BACKWARD, FORWARD
from mrcnn_jax.ops import assign_levels

PYRAMID = ((200, 336), (100, 168), (50, 84), (25, 42))  # P2 to P5 of an 800 x 1344 image


@dataclass(frozen=True)
class Workload:
    """RoIs on one or more feature maps of an image."""

    name: str
    use: str  # part of a detector it comes from
    maps: tuple[tuple[int, int], ...]  # height and width of each level
    strides: tuple[int, ...]  # image pixels per cell of each level
    channels: int
    rois: int  # of each image
    bins: int  # along each side of a RoI
    sizes: tuple[float, float]
    """Range of the square root of RoIs' areas in image pixels, uniform or, over a pyramid, log-uniform."""
    training: bool = True  # whether the gradient is measured, too
    groups: int = 1  # position-sensitive maps along each side of a RoI; channels are those of all maps

    @property
    def directions(self) -> tuple[str, ...]:
        return (FORWARD, BACKWARD) if self.training else (FORWARD,)

    def features(self, batch: int, dtype: jnp.dtype, seed: int = 0) -> list[jnp.ndarray]:
        """Draws standard normal features of each level, [batch, height, width, channels]."""
        random = np.random.default_rng(seed)
        shapes = [(batch, *side, self.channels) for side in self.maps]
        return [jnp.asarray(random.standard_normal(shape, dtype=np.float32), dtype) for shape in shapes]

    def boxes(self, batch: int, seed: int = 1) -> np.ndarray:
        """Draws RoIs within the image with aspect ratios from 1/2 to 2, [batch, rois, 4] in image pixels."""
        random = np.random.default_rng(seed)
        image = np.array(self.maps[0][::-1]) * self.strides[0]  # width, height
        low, high = self.sizes
        share = random.uniform(size=(batch, self.rois))
        size = low + share * (high - low) if len(self.maps) == 1 else low * (high / low) ** share
        aspect = 2.0 ** random.uniform(-1, 1, size.shape)
        sides = np.minimum(np.stack([size * np.sqrt(aspect), size / np.sqrt(aspect)], axis=-1), image)
        corner = random.uniform(size=sides.shape) * (image - sides)
        return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)

    def levels(self, boxes: np.ndarray) -> np.ndarray:
        """Assigns the level of each RoI, counted from 0."""
        return np.asarray(assign_levels(boxes, 2, 1 + len(self.maps))) - 2


STRIDES, RANGE = (4, 8, 16, 32), (16, 800)
P2, C4 = PYRAMID[:1], PYRAMID[2:3]
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("one map", "512 RoIs of 20 to 320 pixels on P2 alone", P2, (4,), 256, 512, 7, (20, 320)),
        Workload("C4", "box head on C4, Faster R-CNN's 300 proposals", C4, (16,), 1024, 300, 14, (20, 640)),
        Workload("FCIS", "classes and masks", ((38, 63),), (16,), 7938, 300, 7, (20, 560), groups=7),
        Workload("FPN inference", "box head, 1,000 proposals", PYRAMID, STRIDES, 256, 1000, 7, RANGE, False),
        Workload("FPN box training", "box head, 512 RoIs", PYRAMID, STRIDES, 256, 512, 7, RANGE),
        Workload("FPN mask training", "mask head, 128 RoIs", PYRAMID, STRIDES, 256, 128, 14, RANGE),
    )
}
TINY_FCIS = Workload("tiny FCIS", "for tests", ((6, 8),), (16,), 8, 6, 2, (8, 48), groups=2)
TINY = Workload("tiny", "for tests", ((12, 16), (6, 8)), (4, 8), 8, 6, 3, (8, 48))
BY_NAME = WORKLOADS | {TINY.name: TINY, TINY_FCIS.name: TINY_FCIS}
