"""Cityscapes in its official layout -> a prepared data set (Cordts et al. 2016, https://www.cityscapes-dataset.com).

    leftImg8bit/{train,val}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_SEQUENCE_FRAME_gtFine_instanceIds.png

A pixel of the second kind of file holds label * 1000 + number where it belongs to one object, and the label alone where it belongs to a
group whose objects cannot be told apart; a group becomes one crowd region. All that is not of the eight classes is background.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt16
from pycocotools import mask as coco_mask

from mrcnn_jax.data import dataset as records
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.image_io import decode
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

LABELS = {"person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33}
"""The classes whose objects are told apart and scored, with Cityscapes' own label ids."""
SPLITS = {"train": "train", "validation": "val"}
"""What the prepared splits are called in Cityscapes, whose test annotations are not public."""

_IMAGES, _TRUTH = "leftImg8bit", "gtFine"
_TRUTH_SUFFIX = "_gtFine_instanceIds.png"


def is_cityscapes(folder: str | os.PathLike) -> bool:
    """Whether a folder is laid out like Cityscapes."""
    return any((Path(folder) / name).is_dir() for name in (_IMAGES, _TRUTH))


def truth_name(file_name: str) -> str:
    """The file of instance ids that belongs to an image; both names are relative to the root of Cityscapes."""
    return _TRUTH + file_name.removeprefix(_IMAGES).removesuffix(f"_{_IMAGES}.png") + _TRUTH_SUFFIX


def read_instance_ids(path: Path) -> UInt16[np.ndarray, "H W"]:
    """A file of instance ids.

    Raises:
        InputError: it is missing, truncated or damaged, or has not one channel of 16 bits.
    """
    try:
        ids = decode(path, path.read_bytes(), cv2.IMREAD_UNCHANGED)
    except OSError:
        raise InputError(f"{path}: there is no such file.") from None
    if ids.dtype != np.uint16 or ids.ndim != 2:
        raise InputError(f"{path} is not an image of instance ids: it must have one channel of 16 bits.")
    return ids


class Split:
    """The records of one split, image ids counted from 1 in the order of the file names, annotation ids in that of the objects.

    ``file_name`` is relative to the root. The constructor looks for the files, an iteration reads them one at a time; afterwards ``str``
    tells what was found.

    Raises:
        InputError: from the constructor for missing files; from an iteration for files that are unreadable or differ in size.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        self.folder, self.name = Path(folder), split
        truth = sorted((self.folder / _TRUTH / SPLITS[split]).glob(f"*/*{_TRUTH_SUFFIX}"))
        if not truth:
            raise InputError(f"{self.folder / _TRUTH / SPLITS[split]} holds no CITY/*{_TRUTH_SUFFIX}.")
        stems = [path.relative_to(self.folder / _TRUTH).as_posix().removesuffix(_TRUTH_SUFFIX) for path in truth]
        self.file_names = [f"{_IMAGES}/{stem}_{_IMAGES}.png" for stem in stems]
        missing = [name for name in self.file_names if not (self.folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise InputError(f"{self.folder}: {len(missing)} of {len(truth)} images annotated in {_TRUTH}/{SPLITS[split]} are missing ({shown}).")
        self._forget()

    def _forget(self) -> None:
        self.empty_images, self.instances, self.groups = 0, Counter[str](), Counter[str]()

    def __len__(self) -> int:
        return len(self.file_names)

    def __iter__(self) -> Iterator[Record]:
        self._forget()
        annotations = 0
        for image_id, file_name in enumerate(self.file_names, start=1):
            path, truth = self.folder / file_name, self.folder / truth_name(file_name)
            image, ids = path.read_bytes(), read_instance_ids(truth)
            (height, width), (truth_height, truth_width) = decode(path, image).shape[:2], ids.shape
            if (height, width) != (truth_height, truth_width):
                raise InputError(f"{truth} is {truth_width}x{truth_height} (width x height), but {path} is {width}x{height}.")
            objects = _objects(ids, first_id=annotations + 1)
            annotations += len(objects.ids)
            self._count(objects)
            yield Record(image, image_id, file_name, height, width, objects)

    def _count(self, objects: Objects) -> None:
        self.empty_images += len(objects.ids) == 0
        for class_, crowd in zip(objects.classes, objects.crowd, strict=True):
            (self.groups if crowd else self.instances)[INFO.category_names[class_]] += 1

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self):,} images, {self.empty_images:,} of them without objects"]
        lines += [f"  {name}: {self.instances[name]:,} instances, {self.groups[name]:,} groups" for name in LABELS]
        return "\n".join(lines)


def _objects(ids: UInt16[np.ndarray, "H W"], first_id: int) -> Objects:
    """The objects and groups of one image, by their values: groups, whose values are small, come first."""
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


INFO = DatasetInfo(name="cityscapes", category_ids=tuple(LABELS.values()), category_names=tuple(LABELS))


def prepare(folder: str | os.PathLike, out: str | os.PathLike, *, progress: bool = True, overwrite: bool = False) -> dict[str, Split]:
    """Converts Cityscapes into a prepared data set with the splits "train" and "validation", or the one that is there.

    Args:
        folder: the root, with leftImg8bit and gtFine. Images are stored as they are.
        out: the directory to write.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared data set at ``out``.

    Returns:
        What was found in each split.

    Raises:
        InputError: the input cannot be trusted; nothing is written.
    """
    truth = Path(folder) / _TRUTH
    if not truth.is_dir():
        raise InputError(f"{folder} has no folder {_TRUTH}: Cityscapes' annotations, gtFine_trainvaltest, belong there.")
    found = {split: Split(folder, split) for split, part in SPLITS.items() if (truth / part).is_dir()}
    if not found:
        raise InputError(f"{truth} has neither of the folders {' and '.join(SPLITS.values())}.")
    records.write(out, INFO, found, progress=progress, overwrite=overwrite)
    return found
