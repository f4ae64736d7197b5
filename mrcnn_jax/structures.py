"""The data that flows through the detector, one way: Batch -> Proposals -> Predictions -> Detections.

Legend of dimension letters, used in every signature of the project:

====  ===========================================================================
B     images of one device (or of one process, on the host)
H W   height and width of the padded image, or of the array at hand
C     channels
L     pyramid levels
G     object slots of an image (fixed; ``valid`` says which are real)
A     anchors of an image, over all levels
P     proposals of an image
R     RoIs sampled for training
D     detections of an image
K     foreground classes
M     side of a mask (in a batch: the mask cropped to its object's box)
J     keypoints of an object
====  ===========================================================================

Boxes are float32 (x1, y1, x2, y2) in pixels of the resized image, in continuous coordinates: pixel i spans [i, i + 1),
its centre is i + 0.5 and the width of a box is x2 - x1. Classes inside the model are 0..K-1.
"""

from typing import NamedTuple

import flax.struct
import numpy as np

from mrcnn_jax.typing import Array, Bool, Float, Int, UInt8


@flax.struct.dataclass
class Batch:
    """What the device sees of B images: fixed shapes, whatever the images hold."""

    # RGB, 0 to 255, resized, zero-padded at the right and at the bottom; float32 where resizing does not round to whole levels
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
    sizes: Int[Array, "B 2"]  # height and width before padding
    boxes: Float[Array, "B G 4"]
    classes: Int[Array, "B G"]
    valid: Bool[Array, "B G"]  # which object slots are real
    crowd: Bool[Array, "B G"]  # regions of many objects: neither positive nor negative examples
    masks: UInt8[Array, "B G M M"]  # 0 or 1, each cropped to its own box
    keypoints: Float[Array, "B G J 3"]  # x, y, visibility (0 unlabelled, 1 hidden, 2 visible); J may be 0


class BatchInfo(NamedTuple):
    """What the host keeps of a batch: where each image came from."""

    image_ids: Int[np.ndarray, "B"]  # the data set's own ids
    original_sizes: Int[np.ndarray, "B 2"]  # height and width before resizing
    real: Bool[np.ndarray, "B"]  # False for images that only fill up the last batch of an evaluation


@flax.struct.dataclass
class Proposals:
    """Class-agnostic boxes from the RPN, best first."""

    boxes: Float[Array, "B P 4"]
    scores: Float[Array, "B P"]  # objectness logits
    valid: Bool[Array, "B P"]


@flax.struct.dataclass
class Predictions:
    """What the model says of a batch, still on the device and in pixels of the resized image, best first."""

    boxes: Float[Array, "B D 4"]
    scores: Float[Array, "B D"]
    classes: Int[Array, "B D"]
    valid: Bool[Array, "B D"]
    masks: Float[Array, "B D M M"] | None = None  # probability of the predicted class's mask inside the box; None without a mask branch
    keypoints: Float[Array, "B D J m m"] | None = None  # logits over the positions of the box, for each keypoint; None without that branch


class Detections(NamedTuple):
    """What a user gets for one image, in pixels of the image as given, best first."""

    boxes: Float[np.ndarray, "D 4"]
    scores: Float[np.ndarray, "D"]
    class_ids: Int[np.ndarray, "D"]  # 0..K-1; the names and the data set's own ids stand in DatasetInfo
    masks: Bool[np.ndarray, "D H W"] | None = None  # None from a model without a mask branch
    keypoints: Float[np.ndarray, "D J 3"] | None = None  # x, y, score; 0 for classes that have none; None without a keypoint branch


class DatasetInfo(NamedTuple):
    """What the classes and keypoints of a data set are called. Position i is class (or keypoint) i of the model."""

    name: str
    category_ids: tuple[int, ...]  # the data set's own ids, gaps allowed
    category_names: tuple[str, ...]
    keypoint_names: tuple[str, ...] = ()
    keypoint_flip: tuple[int, ...] = ()  # which keypoint takes each one's place in the mirrored image
    skeleton: tuple[tuple[int, int], ...] = ()  # pairs of keypoints to join in pictures, counted from 0
    keypoint_classes: tuple[int, ...] = ()  # classes whose objects have keypoints
    keypoint_sigmas: tuple[float, ...] = ()  # tolerance of each keypoint in the object keypoint similarity (OKS)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)
