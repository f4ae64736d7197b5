"""Values of COCO ground truth and results, read or refused by the name of their entry."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from mrcnn_jax.data.formats.coco_masks import judge_mask
from mrcnn_jax.data.formats.coco_numbers import is_empty, to_flag, to_id, to_whole
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.run_length_masks import measure_counts
from mrcnn_jax.typing import Int

Id = int | str
MAX_PIXELS = 2**31
"""Pixels of a mask: pycocotools counts them in 32 bits."""

MAX_NUMBER = 1e100
"""Largest coordinate: products of larger ones are not finite."""


class Image(NamedTuple):
    """An image of the ground truth; sides are None where it does not say them."""

    number: int
    height: int | None
    width: int | None


def shown(value: Any) -> str:
    """Returns a value for a message: on one line, shortened."""
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):  # whole numbers of thousands of digits; deep nesting
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def read_entries(entries: Any, name: str) -> list[dict]:
    """Returns a list of objects; InputError for anything else."""
    if not isinstance(entries, list | tuple):
        raise InputError(f"{name} must be a list of objects, not {shown(entries)}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f"{name} must be a list of objects, but its entry {number} is {shown(entry)}")
    return list(entries)


def read_id(entry: dict, key: str, name: str) -> Id:
    """Returns a whole number, which may be written as text or as float, or a text that is none."""
    if key not in entry:
        raise InputError(f'{name} has no "{key}"')
    value = entry[key].item() if isinstance(entry[key], np.generic) else entry[key]
    number = value if type(value) is int else to_id(value)
    if number is None and not (isinstance(value, str) and value):
        raise InputError(f"{name} has {key} {shown(value)}, which is neither a whole number nor a text")
    return value if number is None else number


def number_ids(ids: Sequence[Id]) -> dict[Id, int]:
    """Numbers ids from 1 in their order, whole numbers before texts: pycocotools needs ids of one type."""
    ordered = sorted(set(ids), key=lambda id_: (isinstance(id_, str), id_))
    return {id_: number for number, id_ in enumerate(ordered, start=1)}


def is_finite(value: Any) -> bool:
    """Tests for a number, not a text, within float64."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False


def read_numbers(values: Any, length: int) -> list[float] | None:
    """Returns a list of numbers of this length, at most ``MAX_NUMBER``; None for anything else."""
    if not isinstance(values, list | tuple | np.ndarray) or len(values) != length:
        return None
    usable = all(is_finite(value) and abs(float(value)) <= MAX_NUMBER for value in values)
    return [float(value) for value in values] if usable else None


def read_crowd(value: Any, name: str) -> int:
    """Returns 0 or 1 for a flag written as number, boolean, text or null."""
    crowd = to_flag(value)
    if crowd is None:
        raise InputError(f"{name} has iscrowd {shown(value)}, but it must be 0 or 1")
    return int(crowd)


def read_mask(segmentation: Any, image: Image, name: str) -> dict | None:
    """Returns a mask given as compressed or uncompressed run-length code or polygons as compressed code.

    Returns:
        None for an object without a mask: null, {}, [], [[]].

    Raises:
        InputError: the mask is malformed, or of another size than its image.
    """
    if is_empty(segmentation):
        return None
    size = [image.height, image.width]
    if isinstance(segmentation, dict):
        given = segmentation.get("size")
        own = [to_whole(side) for side in given] if isinstance(given, list | tuple) else []
        if len(own) == 2 and None not in own:
            size = own if None in size else size
            if own != size:
                flaw = f"its size is {own}, but the image is {size[0]} high and {size[1]} wide"
                raise InputError(f'{name} has an unusable "segmentation": {flaw}')
            code = {"size": size, "counts": segmentation.get("counts")}
            if measure_masks([code], [image._replace(height=size[0], width=size[1])]) is not None:
                return code
    if None in size:
        raise InputError(f"{name} has a mask whose size neither it nor its image says")
    mask = judge_mask(segmentation, *size, allow_empty=True) if 0 < size[0] * size[1] < MAX_PIXELS else None
    if mask is None or mask.part is None:
        flaw = mask.dropped.removeprefix("mask: ") if mask and mask.dropped else "its size is impossible"
        raise InputError(f'{name} has an unusable "segmentation": {flaw}')
    return mask.part


def measure_masks(masks: Sequence[Any], images: Sequence[Image]) -> Int[np.ndarray, "n"] | None:
    """Returns the areas of masks, all of which must be compressed codes that fill their images; else None."""
    counts = [mask.get("counts") for mask in masks if type(mask) is dict]
    if not masks or len(counts) < len(masks) or not {str, bytes}.issuperset(map(type, counts)):
        return None
    try:
        sizes = np.array([mask.get("size") for mask in masks])
    except ValueError:  # lists of unequal lengths
        return None
    if sizes.dtype.kind != "i" or not np.array_equal(sizes, [[each.height, each.width] for each in images]):
        return None
    measured = measure_counts([text if type(text) is str else text.decode("latin-1") for text in counts])
    if measured is None:
        return None
    pixels, areas = measured
    return areas if np.all((pixels == sizes.astype(float).prod(axis=1)) & (pixels < MAX_PIXELS)) else None


def mask_of_box(box: Sequence[float], image: Image) -> dict | None:
    """Returns the mask of a box (x, y, width, height); None where the image does not say its size."""
    if image.height is None or image.width is None:
        return None
    width, height = image.width, image.height
    left, right = np.clip([box[0], box[0] + box[2]], 0, width)
    top, bottom = np.clip([box[1], box[1] + box[3]], 0, height)
    corners = [left, top, right, top, right, bottom, left, bottom]
    return coco_mask.frPyObjects([corners], height, width)[0]
