"""Detected objects of an image, and their forms for other programs."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import Masks, RunLengthMasks, encode_masks
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.typing import Bool, Float, Int, UInt8


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
        height, width = self._require_image(image, "crops are cut out of")
        first = np.floor(self.boxes[:, :2]).clip(0, [width - 1, height - 1]).astype(int)
        last = np.maximum(np.ceil(self.boxes[:, 2:]).clip(1, [width, height]).astype(int), first + 1)
        return [image[y1:y2, x1:x2] for (x1, y1), (x2, y2) in zip(first, last, strict=True)]

    def draw(self, image: UInt8[np.ndarray, "H W 3"], **settings: Any) -> UInt8[np.ndarray, "h w 3"]:
        """Draws the objects over the image in which they were detected, and returns the picture.

        Args:
            image: upright, as ``mrcnn_jax.data.image_io.read_image(file, upright=True)`` reads it; it is not
                changed.
            **settings: as of ``visualize.draw.draw_detections``: ``score_threshold`` (0.5), ``color_by``
                ("object" or "class"), ``skeleton``, ``scale``, ``max_side``.

        Raises:
            InputError: the image is no uint8 RGB array, or of another size than the masks, where there are
                any.
        """
        from mrcnn_jax.visualize.draw import draw_detections  # lazy: needs OpenCV and Pillow

        self._require_image(image, "objects are drawn over")
        return draw_detections(image, self, **settings)

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the objects as dictionaries of JSON's types.

        Each has box (x1, y1, x2, y2), score, class_id, class_name if it is known, keypoints (x, y, score of
        each) if there are any, and mask, a run-length code of size and counts as COCO has them, likewise.
        """
        codes = None if self.masks is None else encode_masks(self.masks)
        entries = []
        for index, one in enumerate(self):
            entry = {"box": one.box.tolist(), "score": one.score, "class_id": one.class_id}
            if one.class_name is not None:
                entry["class_name"] = one.class_name
            if codes is not None:
                entry["mask"] = codes[index]
            if one.keypoints is not None:
                entry["keypoints"] = one.keypoints.tolist()
            entries.append(entry)
        return entries

    def to_coco(self, image_id: int = 1, info: DatasetInfo | None = None) -> list[dict[str, Any]]:
        """Returns the objects as entries of a COCO results file (cocodataset.org, "Results Format").

        Args:
            image_id: the data set's own id.
            info: of the data set, such as ``detector.info``: its category_ids[i] is written for class i, and
                keypoints only for classes that have them. Without it categories are numbered from 1.

        Returns:
            JSON-ready entries with image_id, category_id, bbox (x, y, width, height) and score; with
            segmentation if there are masks, and with keypoints (x, y, score in turn) if there are any. Boxes
            are rounded to 0.01 pixels, scores to 6 digits after the point, keypoints and their scores to 4.
        """
        boxes = np.asarray(self.boxes, np.float64)
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).round(2).tolist()
        scores = np.asarray(self.scores, np.float64).round(6).tolist()
        categories = [int(info.category_ids[one]) if info else int(one) + 1 for one in self.class_ids]
        entries: list[dict[str, Any]] = [
            {"image_id": int(image_id), "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(categories, boxes, scores, strict=True)
        ]
        if self.masks is not None:
            for entry, code in zip(entries, encode_masks(self.masks), strict=True):
                entry["segmentation"] = code
        if self.keypoints is not None:
            having = info.keypoint_classes or range(info.num_classes) if info else self.class_ids
            keypoints = np.asarray(self.keypoints, np.float64).round(4)
            for entry, points, class_id in zip(entries, keypoints, self.class_ids, strict=True):
                if class_id in having:
                    entry["keypoints"] = points.ravel().tolist()
        return entries

    def to_coco_annotations(
        self, image_id: int, info: DatasetInfo, first_id: int = 1
    ) -> list[dict[str, Any]]:
        """Returns the objects as annotations of a COCO data set, with scores.

        Beside what ``to_coco`` returns they have id, area and iscrowd; keypoints have visibilities (0 or 2),
        and their scores are in keypoint_scores.

        Args:
            image_id: as in ``to_coco``.
            info: likewise.
            first_id: id of the first annotation; the others follow.
        """
        entries = self.to_coco(image_id, info)
        areas = self.areas if self.masks is None else RunLengthMasks.of(self.masks).areas
        for id_, (entry, area) in enumerate(zip(entries, areas.tolist(), strict=True), first_id):
            entry |= {"id": id_, "area": area, "iscrowd": 0}
            if "keypoints" in entry:
                scores = entry["keypoints"][2::3]
                entry["keypoints"][2::3] = [2 * (score > 0) for score in scores]
                entry |= {"keypoint_scores": scores, "num_keypoints": sum(score > 0 for score in scores)}
        return entries

    @staticmethod
    def from_coco(
        entries: Sequence[dict[str, Any]], info: DatasetInfo, height: int, width: int
    ) -> "Detections":
        """Converts entries of one image back, up to their rounding: the inverse of ``to_coco``.

        Args:
            entries: as ``to_coco`` makes them; those of other categories than the set's are left out.
            info: of the data set.
            height: of the image.
            width: of the image.
        """
        classes = {id_: class_id for class_id, id_ in enumerate(info.category_ids)}
        entries = [entry for entry in entries if entry["category_id"] in classes]
        boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(-1, 4)
        masks = [entry.get("segmentation", {}).get("counts", "") for entry in entries]
        keypoints = np.zeros((len(entries), 3 * len(info.keypoint_names)), np.float32)
        for row, entry in zip(keypoints, entries, strict=True):
            row[:] = entry.get("keypoints", 0)
        return Detections(
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            scores=np.array([entry["score"] for entry in entries], np.float32),
            class_ids=np.array([classes[entry["category_id"]] for entry in entries], np.int32),
            masks=RunLengthMasks(masks, height, width) if any(masks) else None,
            keypoints=keypoints.reshape(len(entries), -1, 3) if info.keypoint_names else None,
            class_names=info.category_names,
        )

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

    def _require_image(self, image: Any, use: str) -> tuple[int, int]:
        """Returns the height and width of the image of these objects; InputError for another."""
        shape = tuple(getattr(image, "shape", ()))
        if len(shape) not in (2, 3) or 0 in shape:
            given = f"shape {list(shape)}" if shape else type(image).__name__
            raise InputError(f"{use} an array [H, W, 3], not {given}: pass the upright image in which the "
                             "objects were detected, such as np.asarray(image)")  # fmt: skip
        if self.masks is not None and tuple(self.masks.shape[1:]) != shape[:2]:
            detected, given = (" x ".join(map(str, size)) for size in (self.masks.shape[1:], shape[:2]))
            raise InputError(f"the objects were detected in an image of {detected} pixels (height x width), "
                             f"not {given}")  # fmt: skip
        return shape[:2]

    def _arrays(self) -> dict[str, np.ndarray | None]:
        return {name: getattr(self, name) for name in ("boxes", "scores", "class_ids", "masks", "keypoints")}
