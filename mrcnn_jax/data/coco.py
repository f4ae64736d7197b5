"""A folder in COCO format -> records: reading, checking and mending what people's annotation files really hold.

What makes a whole file untrustworthy (a missing image, an id that refers to nothing, a size that is not the image's)
ends with an InputError. A bad annotation in an otherwise good file is left out, counted and reported. The format is
described at https://cocodataset.org/#format-data; masks become compressed RLE as pycocotools' ``annToRLE`` makes them.
"""

import itertools
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data import records
from mrcnn_jax.data.records import Objects, Record
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

MAX_COORDINATE = 1e6  # the rasteriser walks along every edge of a polygon: a stray 1e12 would never end


class Source(NamedTuple):
    """Where the images and annotations of a split lie."""

    images: Path
    annotations: Path
    part: slice = slice(None)  # which of the file's images, in the order of their ids


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
                if not _is_id(given) or given not in known:
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
        usable = [a["id"] for a in annotations if _is_id(a.get("id")) and a["id"] > 0]
        fresh = itertools.count(max(usable, default=0) + 1)
        seen: set[int] = set()
        for annotation in annotations:
            id_ = annotation.get("id")
            if not _is_id(id_) or id_ <= 0 or id_ in seen:
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
        height, width = _image_size(path, data)
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
            except _BadAnnotation as kind:
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
            _BadAnnotation: it is to be left out.
        """
        mended = self.report.mended
        id_ = annotation["id"]
        segmentation = annotation.get("segmentation")
        rle = None
        if segmentation:
            rle, dropped = _to_rle(segmentation, height, width)
            if dropped:
                mended["polygon parts with fewer than 3 points dropped"].add(id_)
            if coco_mask.area(rle) == 0:
                raise _BadAnnotation("empty mask")
        box = annotation.get("bbox")
        if box is None:
            if rle is None:
                raise _BadAnnotation("neither a box nor a mask")
            box = coco_mask.toBbox(rle).tolist()
            mended["box derived from the mask"].add(id_)
        box = _to_xyxy(box, height, width)
        area = annotation.get("area")
        if not _is_number(area) or area <= 0:
            area = float(coco_mask.area(rle)) if rle else (box[2] - box[0]) * (box[3] - box[1])
            mended["area derived from the mask or the box"].add(id_)
        keypoints = _to_keypoints(annotation.get("keypoints"), len(self.info.keypoint_names))
        counts = rle["counts"].decode() if rle else ""
        class_ = self._class_of[annotation["category_id"]]
        return id_, box, class_, area, bool(annotation.get("iscrowd", 0)), counts, keypoints


class _BadAnnotation(Exception):
    """One annotation cannot be used; the message is the kind under which it is reported."""


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


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
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
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
    )


def _flip(names: tuple[str, ...]) -> tuple[int, ...]:
    """left_x and right_x take each other's place in the mirrored image, every other keypoint keeps its own."""
    other_side = {"left": "right", "right": "left"}
    mirrored = (re.sub("left|right", lambda side: other_side[side[0]], name) for name in names)
    return tuple(names.index(other) if other in names else i for i, other in enumerate(mirrored))


def _image_size(path: Path, data: bytes) -> tuple[int, int]:
    """Height and width of the pixels as stored: an EXIF rotation is not applied, here or when the images are used."""
    jpeg, png = data.startswith(b"\xff\xd8"), data.startswith(b"\x89PNG\r\n\x1a\n")
    if not jpeg and not png:
        raise InputError(f"{path} is not an image in JPEG or PNG format.")
    # A decoder may fill what is missing with gray without a word. In JPEG the end marker cannot occur in pixel data.
    complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") if jpeg else b"IEND" in data[-64:]
    as_stored = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), as_stored) if complete else None
    if image is None:
        raise InputError(f"{path} is truncated or damaged: it cannot be decoded.")
    return image.shape[:2]


def _to_rle(segmentation: Any, height: int, width: int) -> tuple[dict, bool]:
    """The compressed RLE of a segmentation, and whether degenerate parts of a polygon were dropped."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise _BadAnnotation("RLE of another size than the image")
        counts = segmentation.get("counts")
        counts = _runs(counts) if isinstance(counts, str) else counts
        # pycocotools decodes runs that do not fill the image into uninitialised memory, so they must not get there.
        whole = isinstance(counts, list) and all(_is_id(count) and count >= 0 for count in counts)
        if not whole or sum(counts) != height * width:
            raise _BadAnnotation("malformed RLE")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width), False
    parts = segmentation if isinstance(segmentation, list) else [None]
    if not all(_are_numbers(part) and len(part) % 2 == 0 for part in parts):
        raise _BadAnnotation("malformed polygon")
    if any(abs(number) > MAX_COORDINATE for part in parts for number in part):
        raise _BadAnnotation("malformed polygon")
    polygons = [part for part in parts if len(part) >= 6]
    if not polygons:
        raise _BadAnnotation("polygon with fewer than 3 points")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)), len(polygons) < len(parts)


def _runs(counts: str) -> list[int] | None:
    """Run lengths of a compressed RLE, None if it is malformed.

    Five bits a character, lowest first, bit 5 says that more follow; from the fourth run on, the difference to the run
    before the last is stored (pycocotools' maskApi.c).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs if shift == 0 else None


def _to_xyxy(box: Any, height: int, width: int) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box) or box[2] <= 0 or box[3] <= 0:
        raise _BadAnnotation("box without a positive, finite width and height")
    x1, y1, x2, y2 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    # In float32, as the model sees it: a sliver that vanishes there would come out as a width of zero.
    seen = np.clip(np.float32([x1, y1, x2, y2]), 0, np.float32([width, height, width, height]))
    if seen[2] <= seen[0] or seen[3] <= seen[1]:
        raise _BadAnnotation("box wholly outside the image")
    return x1, y1, x2, y2


def _to_keypoints(keypoints: Any, number: int) -> np.ndarray:
    if not number or keypoints is None:
        return np.zeros((number, 3), np.float32)
    if not isinstance(keypoints, list) or len(keypoints) != 3 * number:
        raise _BadAnnotation(f"not {number} keypoints of 3 numbers each")
    if not _are_numbers(keypoints) or not all(visibility in (0, 1, 2) for visibility in keypoints[2::3]):
        raise _BadAnnotation("keypoint with a number that is not finite or a visibility other than 0, 1, 2")
    return np.float32(keypoints).reshape(number, 3)


EXPLICIT = "say where they are with --train IMAGES ANNOTATIONS and --validation IMAGES ANNOTATIONS"


def find_splits(
    folder: str | os.PathLike, validation_images: int = 0, *, keypoints: bool = False
) -> dict[str, Source]:
    """Finds the annotation files and image folders of the usual layouts.

    Annotation files are ``annotations/*.json``, else ``*.json``, else ``*/*.json``; the name of the file, or of the
    folder it shares with its images, says "train" or "val". Images lie in a folder called like the last word of
    the annotation file's name (train2017), like the split (train, val, ...), in ``images``, in such folders in
    ``images``, or beside the annotation file.

    Args:
        folder: the data set.
        validation_images: where there is one annotation file only, this many images, the last by id, become the split
            "validation".
        keypoints: prefer person_keypoints_* to instances_*.

    Raises:
        InputError: files or folders cannot be told apart; the message says how to name them.
    """
    folder = Path(folder)
    if validation_images < 0:
        raise InputError(f"validation_images is {validation_images}, but must be 0 or more.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    found = next(filter(None, (sorted(folder.glob(g)) for g in ("annotations/*.json", "*.json", "*/*.json"))), [])
    if len(found) > 1:
        kinds = ("person_keypoints", "instances") if keypoints else ("instances", "person_keypoints")
        preferred = (kind for kind in kinds if any(path.name.startswith(kind) for path in found))
        kind = next(preferred, "")
        found = [path for path in found if path.name.startswith(kind)]
    if len(found) == 1:
        (path,) = found
        images = _image_folder(folder, path, _split_of(folder, path) or "train")
        if not validation_images:
            return {"train": Source(images, path)}
        held_out = {"train": slice(None, -validation_images), "validation": slice(-validation_images, None)}
        return {split: Source(images, path, part) for split, part in held_out.items()}
    by_split = {s: [path for path in found if _split_of(folder, path) == s] for s in ("train", "validation")}
    if len(by_split["train"]) != 1 or len(by_split["validation"]) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise InputError(f"{folder}: cannot tell the annotation files of the splits (JSON files: {names}); {EXPLICIT}.")
    if validation_images and by_split["validation"]:
        raise InputError(f"{folder}: it has validation annotations of its own, so validation_images must be 0.")
    return {s: Source(_image_folder(folder, paths[0], s), paths[0]) for s, paths in by_split.items() if paths}


def _split_of(folder: Path, path: Path) -> str | None:
    """The split that a file's name, or else its subfolder's, speaks of; None for both or neither ("trainval")."""
    for name in reversed(path.relative_to(folder).with_suffix("").parts):
        name = name.lower()
        train, validation = "train" in name, "val" in name
        if train or validation:
            return None if train and validation else "train" if train else "validation"
    return None


def _image_folder(folder: Path, annotations: Path, split: str) -> Path:
    last_word = annotations.stem.split("_")[-1]
    names = {"train": ["train", "train2017"], "validation": ["val", "valid", "validation", "val2017"]}[split]
    candidates = [folder / name for name in (last_word, *names)]
    candidates += [folder / "images" / name for name in (last_word, *names)]
    candidates += [folder / "images"]
    if annotations.parent.parent == folder and annotations.parent.name != "annotations":
        candidates.insert(0, annotations.parent)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(f"{folder}: no image folder found for {annotations.name}; {EXPLICIT}.")


def prepare(
    splits: str | os.PathLike | Mapping[str, Source],
    out: str | os.PathLike,
    *,
    validation_images: int = 0,
    keypoints: bool = False,
    name: str | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Report]:
    """Converts a folder in COCO format into a prepared data set.

    Args:
        splits: the folder, searched by ``find_splits``, or where each split lies.
        out: the directory to write.
        validation_images: see ``find_splits``; only for a folder.
        keypoints: see ``find_splits``; only for a folder.
        name: what to call the data set; by default as the folder or the output directory.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared data set at ``out``.

    Returns:
        What was kept, left out and mended, for each split.

    Raises:
        InputError: the input cannot be trusted; nothing is written.
    """
    if not isinstance(splits, Mapping):
        name = name or Path(splits).absolute().name
        splits = find_splits(splits, validation_images, keypoints=keypoints)
    name = name or Path(out).absolute().name
    files = {split: CocoFile(*source, name=name) for split, source in splits.items()}
    (first, info), *others = ((split, file.info) for split, file in files.items())
    for split, other in others:
        if other != info:
            raise InputError(f"The categories of the splits '{first}' and '{split}' differ: they must be the same.")
    records.write(out, info, files, progress=progress, overwrite=overwrite)
    for split, file in files.items():
        file.report.name = split
    return {split: file.report for split, file in files.items()}
