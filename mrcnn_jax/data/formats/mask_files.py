"""Reader of images and mask files: a file an object, or the numbers of all objects of an image in one.

    images/1.jpg     masks/1.png         numbers of objects: gray, of a palette, or colours; 0 is background
    images/1.jpg     masks/1/*.png       a file an object, also masks/1_*.png
    images/1.jpg     masks/CAT/1.png     either with a folder for each class, also masks/1/CAT/*.png
    1/images/1.png   1/masks/*.png       as in the Data Science Bowl 2018

Each may be below folders named train, val and test, or have them below images and masks. In a file an object,
pixels above half of its largest value belong to it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import cv2
import numpy as np
from jaxtyping import Int

from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.label_images import encode, read_label_image, split_values
from mrcnn_jax.data.formats.listing import Collector, common_folder, list_by_name
from mrcnn_jax.data.formats.split_names import group_by_folder
from mrcnn_jax.data.image_files import IMAGE_SUFFIXES
from mrcnn_jax.errors import InputError

NAME = "mask files"
LOOKS_FOR = "masks: images/ and masks/*.png"
CLASS = "object"
"""Class of objects where no folder names one."""
_MASKS = ("masks", "mask", "labels", "label", "instances", "gt", "groundtruth", "ground_truth")
_IMAGES = ("images", "image", "imgs", "img")
_ENDING = re.compile("_(masks?|labels?|instances?|instanceids|gt|seg)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.+)[_-]\d+$")
_PIECE = 16  # pixels of a piece that may be an object

_Key = tuple[str, ...]


class _Mask(NamedTuple):
    """A mask file."""

    path: Path
    class_: str
    single: bool  # a file an object


def recognises(folder: Path, files: dict[str, list[Path]]) -> bool:
    """Returns whether files, by suffix, are images and masks of them."""
    return any(_pair(folder, files)[0].values())


def read(folder: Path, files: dict[str, list[Path]]) -> dict[str, CocoSplit]:
    """Reads the splits of a data set, determined by the names of folders.

    Args:
        folder: its root.
        files: in and below it, by suffix.

    Raises:
        InputError: no image has a mask.
    """
    masks, others = _pair(folder, files)
    splits = group_by_folder(folder, masks)
    empty = [split for split, images in splits.items() if not any(masks[image] for image in images)]
    collectors, folders = {}, {}
    for split, images in splits.items():
        if split not in empty:
            folders[split], collectors[split] = common_folder(images), Collector(NAME, folder)
            _collect(collectors[split], folders[split], {image: masks[image] for image in images})
    warnings = next(iter(collectors.values())).warnings
    warnings += [f"no image of {split} has a mask: the split is left out" for split in empty]
    if others:
        example = others[0].relative_to(folder).as_posix()
        warnings.append(f"{len(others):,} mask files have no image ({example}): they are not used")
    listings = list_by_name(collectors)
    return {split: CocoSplit(folders[split], folder, None, listing) for split, listing in listings.items()}


def _pair(folder: Path, files: dict[str, list[Path]]) -> tuple[dict[Path, list[_Mask]], list[Path]]:
    """Returns the masks of each image, and the masks without an image."""
    images: dict[tuple[_Key, _Key], Path] = {}
    masks: list[tuple[_Key, _Key, Path]] = []
    for path in sorted(path for suffix in IMAGE_SUFFIXES for path in files.get(suffix, [])):
        parts = tuple(normalize("NFC", part) for part in path.relative_to(folder).with_suffix("").parts)
        names = [part.lower() for part in parts[:-1]]
        at = next((i for i, name in enumerate(names) if name in _MASKS), None)
        if at is not None:
            masks.append((parts[:at], parts[at + 1 :], path))
            continue
        at = next((i for i, name in enumerate(names) if name in _IMAGES), None)
        above, below = (parts[:-1], parts[-1:]) if at is None else (parts[:at], parts[at + 1 :])
        images[above, below] = path
    only: dict[_Key, list[_Key]] = {}
    for above, below in images:
        only.setdefault(above, []).append(below)
    found: dict[Path, list[_Mask]] = {path: [] for path in images.values()}
    others = []
    for above, below, path in masks:
        readings = list(_readings(below))
        if len(only.get(above, ())) == 1:  # of one image
            readings += [(only[above][0], CLASS, True)]
        known = next((reading for reading in readings if (above, reading[0]) in images), None)
        if known is None:
            others.append(path)
        else:
            found[images[above, known[0]]].append(_Mask(path, *known[1:]))
    return found, others


def _readings(parts: _Key) -> Iterator[tuple[_Key, str, bool]]:
    """Yields what the path of a mask may mean: an image, a class and whether the file is of one object."""
    *folders, stem = parts
    stems = dict.fromkeys((stem, _ENDING.sub("", stem)))
    numbered = _NUMBERED.match(_ENDING.sub("", stem))
    for skipped in (None, *range(len(folders))):
        rest = tuple(name for i, name in enumerate(folders) if i != skipped)
        class_ = CLASS if skipped is None else folders[skipped]
        yield from (((*rest, name), class_, False) for name in stems)
        if rest:
            yield rest, class_, True
        if numbered:
            yield (*rest, numbered[1]), class_, True


def _collect(collector: Collector, folder: Path, masks: dict[Path, list[_Mask]]) -> None:
    pieces, files = list[str](), 0
    for image, found in masks.items():
        name = image.absolute().relative_to(folder).as_posix()
        collector.add_image(name)
        for mask in found:
            try:
                numbers = read_label_image(mask.path)
                if mask.single:
                    inside = numbers > numbers.max() / 2
                    values = {1: encode(inside)} if inside.any() else {}
                else:
                    values = split_values(numbers)
                    files += 1
                    if len(values) == 1 and _count_pieces(numbers) > 1:
                        pieces.append(mask.path.name)
            except InputError as error:
                kind = str(error).replace(f"cannot read mask {mask.path}: ", "")
                collector.leave_out(name, f"mask file: {kind}", mask.path.name)
                continue
            for value, segmentation in values.items():
                place = mask.path.name if mask.single else f"{mask.path.name}, value {value}"
                collector.add_object(name, mask.class_, f"{name}: {place}", segmentation=segmentation)
    if len(pieces) * 2 > files:
        count = f"{len(pieces):,} of {files:,} masks have one value in several pieces ({pieces[0]})"
        advice = "each is read as one object, so if they are more, give each a value of its own"
        collector.warnings.append(f"{count}: {advice}")
    if empty := [image.name for image, found in masks.items() if not found]:
        count = f"{len(empty):,} of {len(masks):,} images have no mask ({empty[0]})"
        collector.warnings.append(f"{count}: they count as images without objects")


def _count_pieces(numbers: Int[np.ndarray, "H W"]) -> int:
    sizes = cv2.connectedComponentsWithStats((numbers > 0).astype(np.uint8))[2][1:, cv2.CC_STAT_AREA]
    return int((sizes >= _PIECE).sum())
