"""Reader of Cityscapes in its official layout (Cordts et al. 2016) -> a prepared data set.

    leftImg8bit/{train,val}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_SEQUENCE_FRAME_gtFine_instanceIds.png

A pixel of an instanceIds file is label * 1000 + number if it belongs to one object, and the label alone if
it belongs to a group of objects that cannot be told apart; a group becomes one crowd region. Labels other
than the eight classes are background.

References:
    https://www.cityscapes-dataset.com
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from pycocotools import mask as coco_mask

from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import decode_image, decode_unchanged, require_jpeg_or_png
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.structures import DatasetInfo

LABELS = {
    "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""Label ids of the eight classes whose instances are annotated and scored."""
SPLITS = {"train": "train", "validation": "val"}
"""Cityscapes' names of the prepared splits; its test annotations are not public."""
INFO = DatasetInfo(name="cityscapes", category_ids=tuple(LABELS.values()), category_names=tuple(LABELS))

_IMAGES, _TRUTH = "leftImg8bit", "gtFine"
_TRUTH_SUFFIX = "_gtFine_instanceIds.png"


def recognises(folder: str | os.PathLike) -> bool:
    """Returns whether a folder is laid out like Cityscapes."""
    return any((Path(folder) / name).is_dir() for name in (_IMAGES, _TRUTH))


def prepare(
    folder: str | os.PathLike, out: str | os.PathLike, *, progress: bool = False, overwrite: bool = False
) -> dict[str, "CityscapesReport"]:
    """Converts Cityscapes into a prepared data set with the splits train and validation, or one of them.

    See ``data.prepare.prepare``; ``folder`` is the root, with leftImg8bit and gtFine.

    Returns:
        The objects found in each split.
    """
    truth = Path(folder) / _TRUTH
    if not truth.is_dir():
        raise InputError(f"{folder} has no folder {_TRUTH} with the annotations (gtFine_trainvaltest)")
    found = {name: CityscapesSplit(folder, name) for name, part in SPLITS.items() if (truth / part).is_dir()}
    if not found:
        raise InputError(f"{truth} has neither of the folders {' and '.join(SPLITS.values())}")
    write_dataset(out, INFO, found, progress=progress, overwrite=overwrite)
    return {split: records.report for split, records in found.items()}


@dataclass
class CityscapesReport:
    """Images and objects of a split."""

    name: str
    images: int
    empty_images: int = 0
    instances: Counter[str] = field(default_factory=Counter)
    groups: Counter[str] = field(default_factory=Counter)

    def add(self, objects: Objects) -> None:
        """Counts the objects of one image."""
        self.empty_images += len(objects.ids) == 0
        for class_, crowd in zip(objects.classes, objects.crowd, strict=True):
            (self.groups if crowd else self.instances)[INFO.category_names[class_]] += 1

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.images:,} images, {self.empty_images:,} of them without objects"]
        for name in LABELS:
            lines.append(f"  {name}: {self.instances[name]:,} instances, {self.groups[name]:,} groups")
        return "\n".join(lines)


class CityscapesSplit:
    """The records of one split; image ids, in the order of file names, and annotation ids count from 1.

    ``file_name`` is relative to the root. The constructor looks for the files, an iteration reads them one
    at a time and renews ``report``.

    Raises:
        InputError: from the constructor for missing files; from an iteration for unreadable files or other
            sizes.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        self.folder, self.name = Path(folder), split
        truth = sorted((self.folder / _TRUTH / SPLITS[split]).glob(f"*/*{_TRUTH_SUFFIX}"))
        if not truth:
            raise InputError(f"{self.folder / _TRUTH / SPLITS[split]} holds no CITY/*{_TRUTH_SUFFIX}")
        names = [path.relative_to(self.folder / _TRUTH).as_posix() for path in truth]
        stems = [name.removesuffix(_TRUTH_SUFFIX) for name in names]
        self.file_names = [f"{_IMAGES}/{stem}_{_IMAGES}.png" for stem in stems]
        if missing := [name for name in self.file_names if not (self.folder / name).is_file()]:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            annotated = f"{len(truth)} images annotated in {_TRUTH}/{SPLITS[split]}"
            raise InputError(f"{self.folder}: {len(missing)} of {annotated} are missing ({shown})")
        self.report = CityscapesReport(split, len(self))

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[Record]:
        self.report, annotations = CityscapesReport(self.name, len(self)), 0
        for image_id, file_name in enumerate(self.file_names, start=1):
            path, truth = self.folder / file_name, self.folder / truth_name(file_name)
            image, ids = path.read_bytes(), read_instance_ids(truth)
            require_jpeg_or_png(image, path)
            height, width, _ = decode_image(image, path).shape
            if (height, width) != ids.shape:
                annotated = f"{ids.shape[1]}x{ids.shape[0]} (width x height)"
                raise InputError(f"{truth} is {annotated}, but {path} is {width}x{height}")
            objects = _objects(ids, first_id=annotations + 1)
            annotations += len(objects.ids)
            self.report.add(objects)
            yield Record(image, image_id, file_name, height, width, objects)


def truth_name(file_name: str) -> str:
    """Returns the instanceIds file of an image; both names are relative to the root of Cityscapes."""
    return _TRUTH + file_name.removeprefix(_IMAGES).removesuffix(f"_{_IMAGES}.png") + _TRUTH_SUFFIX


def read_instance_ids(path: Path) -> UInt16[np.ndarray, "H W"]:
    """Reads an instanceIds file.

    Raises:
        InputError: it is missing, truncated or damaged, or has not one channel of 16 bits.
    """
    try:
        data = read_bytes(path)
    except OSError:
        raise InputError(f"{path}: there is no such file") from None
    require_jpeg_or_png(data, path)
    ids = decode_unchanged(data, path)
    if ids.dtype != np.uint16 or ids.ndim != 2:
        raise InputError(f"{path} is not an image of instance ids: it must have one channel of 16 bits")
    return ids


def _objects(ids: UInt16[np.ndarray, "H W"], first_id: int) -> Objects:
    """Returns the objects and groups of one image in the order of their values, hence groups first."""
    class_of = {label: class_ for class_, label in enumerate(LABELS.values())}
    label_of = {int(value): int(value) // 1000 or int(value) for value in np.unique(ids)}
    values = [value for value, label in label_of.items() if label in class_of]
    rles = [coco_mask.encode(np.asfortranarray(ids == value, np.uint8)) for value in values]
    x, y, width, height = coco_mask.toBbox(rles).reshape(-1, 4).T if rles else np.zeros((4, 0))
    return Objects(
        ids=np.arange(first_id, first_id + len(values), dtype=np.int64),
        boxes=np.stack([x, y, x + width, y + height], axis=1).astype(np.float64),
        classes=np.array([class_of[label_of[value]] for value in values], np.int32),
        areas=np.array([coco_mask.area(rle) for rle in rles], np.float64),
        crowd=np.array([value < 1000 for value in values], bool),
        rles=[rle["counts"].decode("ascii") for rle in rles],
        keypoints=np.zeros((len(values), 0, 3), np.float32),
    )
