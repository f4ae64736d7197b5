"""Reader of data sets in COCO format: annotation files and image folders -> a prepared data set.

A fault that makes a whole file untrustworthy (a missing image, an id that refers to nothing, a size that is
not the image's) raises an InputError. A bad annotation in an otherwise good file is left out, counted and
reported.

References:
    https://cocodataset.org/#format-data
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data.coco_keypoints import PERSON_KEYPOINTS, PERSON_SIGMAS, flip_indices
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.formats.coco_annotation import (
    BadAnnotation,
    is_id,
    is_number,
    to_keypoints,
    to_rle,
    to_xyxy,
)
from mrcnn_jax.data.formats.coco_layout import CocoSplit, find_splits
from mrcnn_jax.data.formats.conversion_report import Report
from mrcnn_jax.data.image_io import decode_image, require_jpeg_or_png
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo


def prepare(
    splits: str | os.PathLike | Mapping[str, CocoSplit],
    out: str | os.PathLike,
    *,
    validation_images: int = 0,
    keypoints: bool = False,
    name: str | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> dict[str, Report]:
    """Converts data in COCO format into a prepared data set; see ``data.prepare.prepare``.

    Args:
        splits: a folder, searched by ``find_splits`` with the next two options, or the files of each split.
        name: by default that of the folder or of the output directory.

    Returns:
        Which annotations were kept, left out and mended, for each split.
    """
    if not isinstance(splits, Mapping):
        name = name or Path(splits).absolute().name
        splits = find_splits(splits, validation_images, keypoints=keypoints)
    name = name or Path(out).absolute().name
    files = {split: CocoFile(*source, name=name) for split, source in splits.items()}
    (first, info), *others = ((split, file.info) for split, file in files.items())
    for split, other in others:
        if other != info:
            raise InputError(f"the categories of the splits {first} and {split} differ, but must be the same")
    write_dataset(out, info, files, progress=progress, overwrite=overwrite)
    for split, file in files.items():
        file.report.name = split
    return {split: file.report for split, file in files.items()}


class CocoFile:
    """One annotation file and its images: a sequence of records in the order of the image ids.

    The constructor reads and checks the annotation file; images are read, and annotations checked, one
    record at a time. ``report`` is complete once every record has been read.

    Raises:
        InputError: from the constructor for the annotation file and missing images; from reading a record
            for an image that is unreadable, truncated, neither JPEG nor PNG, or of another size than
            annotated.
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
                raise InputError(f"{self.path}: annotation number {position}, from 0, is not an object")
            for key, known in (("image_id", by_id), ("category_id", categories)):
                given = annotation.get(key)
                if not is_id(given) or given not in known:
                    named = f"{self.path}: annotation {annotation.get('id', f'number {position}')}"
                    raise InputError(f"{named} has {key} {given!r}, which is not listed")
            self._annotations[annotation["image_id"]].append(annotation)
        self._images = [by_id[id_] for id_ in sorted(by_id)[part]]
        if not self._images:
            raise InputError(f"{self.path}: none of its {len(by_id)} images is left for this split")
        self._check_files()
        annotations = [annotation for image in self._images for annotation in self._annotations[image["id"]]]
        self.report = Report(self.path.name, len(self._images), len(annotations))
        self._replace_unusable_ids(annotations)

    def _check_files(self) -> None:
        for image in self._images:
            if not isinstance(image.get("file_name"), str):
                raise InputError(f"{self.path}: image {image['id']} has no file_name")
        names = [image["file_name"] for image in self._images]
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise InputError(
                f"{self.path}: {len(missing)} of {len(names)} images are missing from {self.folder} ({shown})"
            )

    def _replace_unusable_ids(self, annotations: list[dict]) -> None:
        """Gives annotations whose id is missing, repeated or not positive a new one.

        The evaluation needs unique ids, and pycocotools takes an object with id 0 for no object at all.
        """
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
        require_jpeg_or_png(data, path)
        height, width = decode_image(data, path).shape[:2]
        annotated = (image.get("height") or height, image.get("width") or width)
        if annotated != (height, width):
            size = f"{annotated[1]}x{annotated[0]} (width x height)"
            stored = f"{width}x{height} (as stored, without EXIF rotation)"
            named = f"{self.path}: image {image['id']}"
            raise InputError(f"{named} is annotated as {size}, but {path} is {stored}")
        objects = []
        for annotation in self._annotations[image["id"]]:
            try:
                objects.append(self._object(annotation, height, width))
            except BadAnnotation as kind:
                self.report.left_out[str(kind)].add(annotation["id"])
        columns = list(zip(*objects, strict=True)) or [()] * len(Objects._fields)
        ids, boxes, classes, areas, crowd, rles, keypoints = columns
        shape = len(ids), len(self.info.keypoint_names), 3
        objects = Objects(
            ids=np.array(ids, np.int64),
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            classes=np.array(classes, np.int32),
            areas=np.array(areas, np.float64),
            crowd=np.array(crowd, bool),
            rles=list(rles),
            keypoints=np.array(keypoints, np.float32).reshape(shape),
        )
        return Record(data, image["id"], image["file_name"], height, width, objects)

    def _object(self, annotation: dict, height: int, width: int) -> tuple:
        """Returns the fields of ``Objects`` for one annotation.

        Raises:
            BadAnnotation: it is to be left out.
        """
        mended, id_ = self.report.mended, annotation["id"]
        rle = None
        if segmentation := annotation.get("segmentation"):
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
    try:
        content = json.loads(path.read_bytes())
    except OSError:
        raise InputError(f"{path}: there is no such annotation file") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            needed = "a COCO file has images, annotations and categories"
            raise InputError(f"{path} has no list '{key}': {needed}")
    return content


def _by_id(path: Path, kind: str, entries: list[dict]) -> dict[int, dict]:
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_id(entry.get("id")):
            raise InputError(f"{path}: {kind} number {position}, from 0, has no integer id")
    repeated = [id_ for id_, times in Counter(entry["id"] for entry in entries).items() if times > 1]
    if repeated:
        raise InputError(f"{path}: {kind} id {repeated[0]} is given more than once")
    if not entries:
        raise InputError(f"{path}: it lists no {kind}, but needs at least one")
    return {entry["id"]: entry for entry in entries}


def _dataset_info(path: Path, name: str, categories: dict[int, dict]) -> DatasetInfo:
    ids = tuple(sorted(categories))
    for id_ in ids:
        if not isinstance(categories[id_].get("name"), str):
            raise InputError(f"{path}: category {id_} has no name")
    with_keypoints = [categories[id_] for id_ in ids if categories[id_].get("keypoints")]
    keypoints, skeleton = (), ()
    if with_keypoints:
        keypoints = tuple(with_keypoints[0]["keypoints"])
        if any(tuple(category["keypoints"]) != keypoints for category in with_keypoints):
            raise InputError(f"{path}: its categories must list the same keypoints, but list different ones")
        # COCO counts from 1
        skeleton = tuple((a - 1, b - 1) for a, b in with_keypoints[0].get("skeleton") or ())
        if any(not 0 <= end < len(keypoints) for edge in skeleton for end in edge):
            raise InputError(f"{path}: the skeleton refers to a keypoint outside 1..{len(keypoints)}")
    return DatasetInfo(
        name=name,
        category_ids=ids,
        category_names=tuple(categories[id_]["name"] for id_ in ids),
        keypoint_names=keypoints,
        keypoint_flip=flip_indices(keypoints),
        skeleton=skeleton,
        keypoint_classes=tuple(class_ for class_, id_ in enumerate(ids) if categories[id_].get("keypoints")),
        keypoint_sigmas=PERSON_SIGMAS if keypoints == PERSON_KEYPOINTS else (),
    )
