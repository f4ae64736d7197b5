"""The data that flows through the detector, one way: Batch -> Proposals -> Predictions -> Detections
(``mrcnn_jax.detections``).

The legend of dimension letters is in ``mrcnn_jax.typing``.

Boxes are float32 (x1, y1, x2, y2) in pixels of the resized image, in continuous coordinates: pixel i spans
[i, i + 1), its centre is i + 0.5 and the width of a box is x2 - x1. Classes inside the model are 0..K-1.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from mrcnn_jax.typing import Array, Bool, Float, Int, UInt8


@flax.struct.dataclass
class Example:
    """One training image and its objects, in fixed shapes; ``Batch`` has the same fields for B images."""

    images: UInt8[Array, "H W 3"] | Float[Array, "H W 3"]
    sizes: Int[Array, "2"]
    boxes: Float[Array, "G 4"]
    classes: Int[Array, "G"]
    valid: Bool[Array, "G"]
    crowd: Bool[Array, "G"]
    masks: UInt8[Array, "G M M"]
    has_mask: Bool[Array, "G"]
    keypoints: Float[Array, "G J 3"]


@flax.struct.dataclass
class Batch:
    """B training images and their objects, in fixed shapes however many objects there are."""

    # RGB, 0 to 255, resized, zero-padded at the right and the bottom; float32 if resizing does not round
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]  # height and width before padding
    boxes: Float[Array, "B G 4"]
    classes: Int[Array, "B G"]
    valid: Bool[Array, "B G"]  # object slots that hold an object
    crowd: Bool[Array, "B G"]  # regions of many objects: neither positive nor negative examples
    masks: UInt8[Array, "B G M M"]  # 0 or 1, each cropped to its own box
    has_mask: Bool[Array, "B G"]  # object slots whose mask is annotated
    keypoints: Float[Array, "B G J 3"]  # x, y, visibility (0 unlabelled, 1 hidden, 2 visible); J may be 0

    @property
    def examples(self) -> Example:
        """The same arrays as an ``Example`` with a leading axis, to be mapped over with ``jax.vmap``."""
        return Example(**vars(self))


class BatchInfo(NamedTuple):
    """Origin of the images of a batch; it stays on the host."""

    image_ids: Int[np.ndarray, "B"]  # ids of the data set
    original_sizes: Int[np.ndarray, "B 2"]  # height and width before resizing


@flax.struct.dataclass
class Proposals:
    """Class-agnostic boxes from the RPN, best first."""

    boxes: Float[Array, "B P 4"]
    scores: Float[Array, "B P"]  # objectness logits
    valid: Bool[Array, "B P"]


@flax.struct.dataclass
class Predictions:
    """Output of the model for a batch, in pixels of the resized image, best first."""

    boxes: Float[Array, "B D 4"]
    scores: Float[Array, "B D"]
    classes: Int[Array, "B D"]
    valid: Bool[Array, "B D"]
    # probability of the predicted class's mask inside the box; None without a mask branch
    masks: Float[Array, "B D M M"] | None = None
    # logits over positions inside the box, per keypoint; None without a keypoint branch
    keypoints: Float[Array, "B D J m m"] | None = None

    def image(self, index: int) -> "Predictions":
        """Returns the predictions of one image, without the batch axis."""
        return jax.tree.map(lambda leaf: leaf[index], self)


@flax.struct.dataclass
class TrainState:
    """Everything that changes from training step to step; equal on all devices."""

    step: Int[Array, ""]
    params: Any
    model_state: Any  # collections "frozen" or "batch_stats", by the kind of normalisation
    opt_state: Any
    failures: Int[Array, ""]  # steps skipped so far (train.max_loss)
    averaged: Any = None  # moving average of params (train.ema_decay)


class DatasetInfo(NamedTuple):
    """Names and ids of the classes and keypoints of a data set, in the order of the model's."""

    name: str
    category_ids: tuple[int, ...]  # the data set's own ids, gaps allowed
    category_names: tuple[str, ...]
    keypoint_names: tuple[str, ...] = ()
    keypoint_flip: tuple[int, ...] = ()  # index of each keypoint's counterpart in the flipped image
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints to join in pictures, counted from 0
    keypoint_classes: tuple[int, ...] = ()  # classes whose objects have keypoints
    keypoint_sigmas: tuple[float, ...] = ()  # tolerances in the object keypoint similarity (OKS)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)
