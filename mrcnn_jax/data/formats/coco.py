"""One annotation file in COCO format -> records: reading, checking and mending what people's files really hold.

What makes a whole file untrustworthy (a missing image, an id that refers to nothing, a size that is not the image's)
ends with an InputError. A bad annotation in an otherwise good file is left out, counted and reported. The format is
described at https://cocodataset.org/#format-data.
"""

import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import PERSON_SIGMAS, Objects, Record
from mrcnn_jax.data.formats.coco_annotation import (
    BadAnnotation,
    is_id,
    is_number,
    to_keypoints,
    to_rle,
    to_xyxy,
)
from mrcnn_jax.data.image_io import decode
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

_PAIRED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
# COCO's keypoints of a person, for which alone it publishes tolerances.
PERSON_KEYPOINTS = ("nose", *(f"{side}_{part}" for part in _PAIRED for side in ("left", "right")))


class Report:
    """What was left out of a split, and what was mended, by kind."""

    def __init__(self, name: str):
        self.name = name
        self.images = 0
        self.annotations = 0
        # Sets of annotation ids, so that reading a record twice does not count it twice.
        self.left_out: dict[str, set[int]] = defaultdict(set)
        self.mended: dict[str, set[int]] = defaultdict(set)

    @property
    def kept(self) -> int:
        """Annotations that became objects."""
        return self.annotations - sum(map(len, self.left_out.values()))

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.images:,} images, {self.kept:,} of {self.annotations:,} annotations kept"]
        for what, kinds in (("left out", self.left_out), ("mended", self.mended)):
            for kind, ids in sorted(kinds.items()):
                shown = ", ".join(map(str, sorted(ids)[:5])) + (", ..." if len(ids) > 5 else "")
                lines.append(f"  {what}: {len(ids):,} x {kind} (annotation {shown})")
        return "\n".join(lines)


class CocoFile:
    """One annotation file and its images: a sequence of records in the order of the image ids.

    The constructor reads and checks the annotation file; the images are read, and the annotations judged, one record
    at a time. ``report`` is complete once every record has been read.

    Raises:
        InputError: from the constructor for the annotation file and missing images; from reading a record for an image
            that is unreadable, truncated, neither JPEG nor PNG, or of another size than annotated.
    """

    def __init__(
        self,
        images: str | os.PathLike,
        annotations: str | os.PathLike,
        part: slice = slice(None),
        *,
        name: str | None = None,
    ):
        self.folder, self.path = Path(images), Path(annotations)
        content = _load(self.path)
        by_id = _by_id(self.path, "image", content["images"])
        categories = _by_id(self.path, "category", content["categories"])
        self.info = _dataset_info(self.path, name or self.path.stem, categories)
        self._class_of = {id_: class_ for class_, id_ in enumerate(self.info.category_ids)}
        self._annotations: dict[int, list[dict]] = {id_: [] for id_ in by_id}
        for position, annotation in enumerate(content["annotations"]):
            if not isinstance(annotation, dict):
                raise InputError(f"{self.path}: annotation number {position}, counted from 0, is not an object.")
            for key, known in (("image_id", by_id), ("category_id", categories)):
                given = annotation.get(key)
                if not is_id(given) or given not in known:
                    id_ = annotation.get("id", f"number {position}")
                    raise InputError(f"{self.path}: annotation {id_} has {key} {given!r}, which is not listed.")
            self._annotations[annotation["image_id"]].append(annotation)
        self._images = [by_id[id_] for id_ in sorted(by_id)[part]]
        if not self._images:
            raise InputError(f"{self.path}: none of its {len(by_id)} images is left for this split.")
        self._check_files()
        self.report = Report(self.path.name)
        self.report.images = len(self._images)
        self.report.annotations = sum(len(self._annotations[image["id"]]) for image in self._images)
        self._number_annotations()

    def _check_files(self) -> None:
        for image in self._images:
            if not isinstance(image.get("file_name"), str):
                raise InputError(f"{self.path}: image {image['id']} has no file_name.")
        missing = [name for name in (i["file_name"] for i in self._images) if not (self.folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise InputError(
                f"{self.path}: {len(missing)} of {len(self._images)} images are missing from {self.folder} ({shown})."
            )

    def _number_annotations(self) -> None:
        """Gives annotations whose id is missing, repeated or not positive a new one: the evaluation needs unique ids,
        and pycocotools takes an object with id 0 for no object at all."""
        annotations = [a for image in self._images for a in self._annotations[image["id"]]]
        usable = [a["id"] for a in annotations if is_id(a.get("id")) and a["id"] > 0]
        fresh = itertools.count(max(usable, default=0) + 1)
        seen: set[int] = set()
        for annotation in annotations:
            id_ = annotation.get("id")
            if not is_id(id_) or id_ <= 0 or id_ in seen:
                annotation["id"] = next(fresh)
                self.report.mended["id missing, repeated or not positive: new id given"].add(annotation["id"])
            seen.add(annotation["id"])

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self._images)

    def __getitem__(self, index: int) -> Record:
        return self._record(self._images[index])

    def _record(self, image: dict) -> Record:
        path = self.folder / image["file_name"]
        data = path.read_bytes()
        height, width = decode(path, data).shape[:2]
        annotated = (image.get("height") or height, image.get("width") or width)
        if annotated != (height, width):
            raise InputError(
                f"{self.path}: image {image['id']} is said to be {annotated[1]}x{annotated[0]} (width x height), "
                f"but {path} is {width}x{height} (as stored, without EXIF rotation)."
            )
        objects = []
        for annotation in self._annotations[image["id"]]:
            try:
                objects.append(self._object(annotation, height, width))
            except BadAnnotation as kind:
                self.report.left_out[str(kind)].add(annotation["id"])
        columns = list(zip(*objects, strict=True)) or [()] * len(Objects._fields)
        ids, boxes, classes, areas, crowd, rles, keypoints = columns
        return Record(
            image=data,
            image_id=image["id"],
            file_name=image["file_name"],
            height=height,
            width=width,
            objects=Objects(
                ids=np.array(ids, np.int64),
                boxes=np.array(boxes, np.float64).reshape(-1, 4),
                classes=np.array(classes, np.int32),
                areas=np.array(areas, np.float64),
                crowd=np.array(crowd, bool),
                rles=list(rles),
                keypoints=np.array(keypoints, np.float32).reshape(len(ids), len(self.info.keypoint_names), 3),
            ),
        )

    def _object(self, annotation: dict, height: int, width: int) -> tuple:
        """The fields of ``Objects`` for one annotation.

        Raises:
            BadAnnotation: it is to be left out.
        """
        mended = self.report.mended
        id_ = annotation["id"]
        segmentation = annotation.get("segmentation")
        rle = None
        if segmentation:
            rle, dropped = to_rle(segmentation, height, width)
            if dropped:
                mended["polygon parts with fewer than 3 points dropped"].add(id_)
            if coco_mask.area(rle) == 0:
                raise BadAnnotation("empty mask")
        box = annotation.get("bbox")
        if box is None:
            if rle is None:
                raise BadAnnotation("neither a box nor a mask")
            box = coco_mask.toBbox(rle).tolist()
            mended["box derived from the mask"].add(id_)
        box = to_xyxy(box, height, width)
        area = annotation.get("area")
        if not is_number(area) or area <= 0:
            area = float(coco_mask.area(rle)) if rle else (box[2] - box[0]) * (box[3] - box[1])
            mended["area derived from the mask or the box"].add(id_)
        keypoints = to_keypoints(annotation.get("keypoints"), len(self.info.keypoint_names))
        counts = rle["counts"].decode() if rle else ""
        class_ = self._class_of[annotation["category_id"]]
        return id_, box, class_, area, bool(annotation.get("iscrowd", 0)), counts, keypoints


def _load(path: Path) -> dict[str, list]:
    """The annotation file, with its three lists."""
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        raise InputError(f"{path}: there is no such annotation file.") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{path} has no list '{key}': a COCO file has images, annotations and categories.")
    return content


def _by_id(path: Path, kind: str, entries: list[dict]) -> dict[int, dict]:
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            raise InputError(f"{path}: {kind} number {position}, counted from 0, has no integer id.")
    repeated = [id_ for id_, times in Counter(entry["id"] for entry in entries).items() if times > 1]
    if repeated:
        raise InputError(f"{path}: {kind} id {repeated[0]} is given more than once.")
    if not entries:
        raise InputError(f"{path}: it lists no {kind}, but needs at least one.")
    return {entry["id"]: entry for entry in entries}


def _dataset_info(path: Path, name: str, categories: dict[int, dict]) -> DatasetInfo:
    ids = tuple(sorted(categories))
    for id_ in ids:
        if not isinstance(categories[id_].get("name"), str):
            raise InputError(f"{path}: category {id_} has no name.")
    with_keypoints = [categories[id_] for id_ in ids if categories[id_].get("keypoints")]
    keypoints, skeleton = (), ()
    if with_keypoints:
        keypoints = tuple(with_keypoints[0]["keypoints"])
        if any(tuple(category["keypoints"]) != keypoints for category in with_keypoints):
            raise InputError(f"{path}: its categories list different keypoints, but one list must serve them all.")
        skeleton = tuple((a - 1, b - 1) for a, b in with_keypoints[0].get("skeleton") or ())  # counted from 1 in COCO
        if any(not 0 <= end < len(keypoints) for edge in skeleton for end in edge):
            raise InputError(f"{path}: the skeleton refers to a keypoint outside 1..{len(keypoints)}.")
    return DatasetInfo(
        name=name,
        category_ids=ids,
        category_names=tuple(categories[id_]["name"] for id_ in ids),
        keypoint_names=keypoints,
        keypoint_flip=_flip(keypoints),
        skeleton=skeleton,
        keypoint_classes=tuple(class_ for class_, id_ in enumerate(ids) if categories[id_].get("keypoints")),
        keypoint_sigmas=PERSON_SIGMAS if keypoints == PERSON_KEYPOINTS else (),
    )


def _flip(names: tuple[str, ...]) -> tuple[int, ...]:
    """left_x and right_x take each other's place in the mirrored image, every other keypoint keeps its own."""
    other_side = {"left": "right", "right": "left"}
    mirrored = (re.sub("left|right", lambda side: other_side[side[0]], name) for name in names)
    return tuple(names.index(other) if other in names else i for i, other in enumerate(mirrored))
