"""The data that flows through the detector, one way: Batch -> Proposals -> Predictions -> Detections.

The legend of dimension letters is in ``mrcnn_jax.typing``.

Boxes are float32 (x1, y1, x2, y2) in pixels of the resized image, in continuous coordinates: pixel i spans
[i, i + 1), its centre is i + 0.5 and the width of a box is x2 - x1. Classes inside the model are 0..K-1.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import RunLengthMasks
from mrcnn_jax.typing import Array, Bool, Float, Int, UInt8

Masks = Bool[np.ndarray, "D H W"] | RunLengthMasks
"""Full-size masks of D objects of an image, or their run-length codes, which behave alike."""


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
    valid: Bool[np.ndarray, "B"]  # False for the padding of an evaluation's last batch


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


@dataclass(frozen=True, eq=False)
class Detection:
    """One detected object, in pixels of the image as given."""

    box: Float[np.ndarray, "4"]
    score: float
    class_id: int
    class_name: str | None = None  # None if the detections carry no names
    masks: Masks | None = None  # of this one object
    keypoints: Float[np.ndarray, "J 3"] | None = None

    @property
    def mask(self) -> Bool[np.ndarray, "H W"] | None:
        """The object's pixels, decoded at every access; None from a model without a mask branch."""
        return None if self.masks is None else self.masks[0]

    def __repr__(self) -> str:
        name = f"class {self.class_id}" if self.class_name is None else self.class_name
        return f"Detection({name} {self.score:.2f} at {', '.join(f'{side:.1f}' for side in self.box)})"


@dataclass(frozen=True, eq=False)
class Detections:
    """Detected objects of one image, in pixels of the image as given, best first.

    ``len`` is the number of objects. Iterating and indexing with an integer give a ``Detection``; a slice, an
    array of indices or a boolean mask, such as ``detections[detections.scores > 0.5]``, gives ``Detections``.

    Raises:
        ValueError: the arrays hold different numbers of objects.
    """

    boxes: Float[np.ndarray, "D 4"]
    scores: Float[np.ndarray, "D"]
    class_ids: Int[np.ndarray, "D"]  # 0..K-1; the data set's own ids are in DatasetInfo
    masks: Masks | None = None  # None from a model without a mask branch
    # x, y, score; zeros for classes without keypoints; None from a model without a keypoint branch
    keypoints: Float[np.ndarray, "D J 3"] | None = None
    class_names: tuple[str, ...] = ()  # name of each class id, if known

    def __post_init__(self):
        lengths = {name: len(array) for name, array in self._arrays().items() if array is not None}
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"all arrays of Detections must hold the same number of objects, not {given}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index):
        one = np.ndim(np.arange(len(self))[index]) == 0
        chosen = {name: None if array is None else array[[index] if one else index]
                  for name, array in self._arrays().items()}  # fmt: skip
        if not one:
            return Detections(**chosen, class_names=self.class_names)
        class_id, keypoints = int(chosen["class_ids"][0]), chosen["keypoints"]
        return Detection(
            box=chosen["boxes"][0], score=float(chosen["scores"][0]), class_id=class_id,
            class_name=self.class_names[class_id] if self.class_names else None,
            masks=chosen["masks"], keypoints=None if keypoints is None else keypoints[0],
        )  # fmt: skip

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    @property
    def areas(self) -> Float[np.ndarray, "D"]:
        """The area of each box, in square pixels."""
        boxes = np.asarray(self.boxes)
        return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    def filter(
        self, score: float = 0.0, classes: int | str | Collection[int | str] | None = None,
        min_area: float = 0.0, max_area: float = math.inf,
    ) -> "Detections":  # fmt: skip
        """Returns the detections that meet all conditions.

        Args:
            score: minimum score.
            classes: name or id, or several of them; None takes all.
            min_area: of the boxes, in square pixels.
            max_area: likewise.

        Raises:
            InputError: for a class that is none of ``class_names``, or a limit that is no number.
        """
        for limit, value in (("score", score), ("min_area", min_area), ("max_area", max_area)):
            if np.ndim(value) or np.asarray(value).dtype.kind not in "iuf" or np.isnan(value):
                raise InputError(f"{limit} must be a number, not {value!r:.50}")
        areas = self.areas
        chosen = (np.asarray(self.scores) >= score) & (areas >= min_area) & (areas <= max_area)
        if classes is not None:
            chosen &= np.isin(self.class_ids, self._find_classes(classes))
        return self[chosen]

    def _find_classes(self, classes: int | str | Collection[int | str]) -> list[int]:
        """Returns the ids of classes that are given by name or id."""
        names, ids = self.class_names, []
        for one in [classes] if isinstance(classes, int | np.integer | str) else classes:
            if isinstance(one, str):
                found = [index for index, name in enumerate(names) if name == one]
            else:
                whole = hasattr(one, "__index__") and 0 <= one < (len(names) or math.inf)
                found = [int(one)] if whole else []
            if not found:
                known = ", ".join(names) or "not known: give ids"
                raise InputError(f"there is no class {one!r}; the classes are {known}")
            ids += found
        return ids

    def crops(self, image: UInt8[np.ndarray, "H W 3"]) -> list[UInt8[np.ndarray, "_h _w 3"]]:
        """Cuts the objects' boxes, enlarged to whole pixels, out of the image; they share its memory.

        Raises:
            InputError: it is no array, or of another size than the masks, where there are any.
        """
        shape = tuple(getattr(image, "shape", ()))
        if len(shape) not in (2, 3) or 0 in shape:
            given = f"shape {list(shape)}" if shape else type(image).__name__
            raise InputError(f"crops are cut out of an array [H, W, 3], not {given}: pass the upright image "
                             "in which the objects were detected, such as np.asarray(image)")  # fmt: skip
        if self.masks is not None and tuple(self.masks.shape[1:]) != shape[:2]:
            detected, given = (" x ".join(map(str, size)) for size in (self.masks.shape[1:], shape[:2]))
            raise InputError(f"the objects were detected in an image of {detected} pixels (height x width), "
                             f"not {given}")  # fmt: skip
        height, width = shape[:2]
        first = np.floor(self.boxes[:, :2]).clip(0, [width - 1, height - 1]).astype(int)
        last = np.maximum(np.ceil(self.boxes[:, 2:]).clip(1, [width, height]).astype(int), first + 1)
        return [image[y1:y2, x1:x2] for (x1, y1), (x2, y2) in zip(first, last, strict=True)]

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the objects as dictionaries of JSON's types.

        Each has box (x1, y1, x2, y2), score, class_id, class_name if it is known, keypoints (x, y, score of
        each) if there are any, and mask if it is a run-length code: size and counts, as COCO has them.
        """
        codes = getattr(self.masks, "counts", None)
        entries = []
        for index, one in enumerate(self):
            entry = {"box": one.box.tolist(), "score": one.score, "class_id": one.class_id}
            if one.class_name is not None:
                entry["class_name"] = one.class_name
            if codes is not None:
                entry["mask"] = {"size": list(self.masks.shape[1:]), "counts": codes[index]}
            if one.keypoints is not None:
                entry["keypoints"] = one.keypoints.tolist()
            entries.append(entry)
        return entries

    def to_supervision(self) -> Any:
        """Returns ``supervision.Detections`` with class names in its data; decodes all masks.

        Raises:
            ImportError: the package ``supervision`` is not installed.
        """
        from supervision import Detections as SupervisionDetections  # ty: ignore[import-not-found]

        names = np.array([self.class_names[one] for one in self.class_ids]) if self.class_names else None
        data = {} if names is None else {"class_name": names}
        masks = None if self.masks is None else np.asarray(self.masks)
        return SupervisionDetections(
            xyxy=np.asarray(self.boxes, np.float32).reshape(-1, 4), mask=masks, data=data,
            confidence=np.asarray(self.scores), class_id=np.asarray(self.class_ids, int),
        )  # fmt: skip

    def __repr__(self) -> str:
        shown = [f"\n  {detection!r}" for detection in self[:10]] + ["\n  ..."] * (len(self) > 10)
        return f"Detections({len(self)} objects{''.join(shown)})"

    def _arrays(self) -> dict[str, np.ndarray | None]:
        return {name: getattr(self, name) for name in ("boxes", "scores", "class_ids", "masks", "keypoints")}


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
