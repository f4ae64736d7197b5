"""Conversion of the mask of one COCO annotation to compressed RLE, as pycocotools' ``annToRLE`` makes it.

A mask is polygons, each a list [x1, y1, x2, y2, ...], or one run-length code. Other spellings of these are
understood: a polygon that is not in a list, points as pairs, deeper nesting, codes in a list, numbers as
text. Of several parts the usable ones are kept.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from mrcnn_jax.data.formats.coco_numbers import (
    MAX_COORDINATE,
    is_empty,
    parse_text,
    to_number,
    to_numbers,
    to_vector,
    to_whole,
)

MAX_OUTLINE = 4e6  # in pixels; the rasteriser holds every pixel of it, five times as fine, in memory
_DEPTH = 4  # of lists in lists


class Judged(NamedTuple):
    """A part of an annotation.

    Attributes:
        part: in the form that is stored; None if there is none or it is unusable.
        dropped: why it is unusable, a kind for the report; None if it was not given.
        mended: kinds of mended flaws.
    """

    part: Any = None
    dropped: str | None = None
    mended: tuple[str, ...] = ()


class _Unusable(Exception):
    """A part of a mask that cannot be used; the message is its kind for the report."""


def judge_mask(segmentation: Any, height: int, width: int, allow_empty: bool = False) -> Judged:
    """Returns the compressed RLE, a dictionary, of a segmentation for an image of this size."""
    polygons, mended, dropped = _plain_polygons(segmentation), set(), []
    rles = []
    if polygons is None:
        polygons = []
        if is_empty(segmentation):
            return Judged()
        for part in _parts(segmentation, mended):
            try:
                if isinstance(part, dict):
                    rles.append(_rle(part, height, width, mended))
                else:
                    polygons.append(_polygon(part, mended))
            except _Unusable as kind:
                dropped.append(str(kind))
    if polygons:
        rles += coco_mask.frPyObjects(polygons, height, width)
    if not rles:
        return Judged(dropped=f"mask: {dropped[0]}" if dropped else None)
    rle = rles[0] if len(rles) == 1 and not polygons else coco_mask.merge(rles)
    if not allow_empty and coco_mask.area(rle) == 0:
        return Judged(dropped=f"mask: {_why_empty(polygons, height, width)}")
    return Judged(rle, None, (*mended, *(f"part of a mask left out: {kind}" for kind in dropped)))


def extent(segmentation: Any) -> tuple[float, float, float, float] | None:
    """Returns x1, y1, x2, y2 of the polygons of a segmentation, also outside the image; None without any."""
    usable = []
    for part in _parts(segmentation, set()):
        try:
            usable += [] if isinstance(part, dict) else [_polygon(part, set()).reshape(-1, 2)]
        except _Unusable:
            continue
    if not usable:
        return None
    points = np.concatenate(usable)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def _plain_polygons(segmentation: Any) -> list[Float[np.ndarray, "N"]] | None:
    """Returns the polygons of a segmentation as COCO writes them; None for one that needs a closer look."""
    if type(segmentation) is not list or not segmentation:
        return None
    polygons = []
    for part in segmentation:
        read = to_vector(part) if type(part) is list and len(part) >= 6 and not len(part) % 2 else None
        if read is None or _is_too_long(*read):
            return None
        polygons.append(read[0])
    return polygons


def _is_too_long(polygon: Float[np.ndarray, "N"], largest: float) -> bool:
    if len(polygon) * largest < MAX_OUTLINE / 2:
        return False
    points = polygon.reshape(-1, 2)
    return np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum() > MAX_OUTLINE


def _parts(segmentation: Any, mended: set[str], depth: int = _DEPTH) -> Iterator[Any]:
    """Yields the polygons, as flat lists, and the run-length codes of a segmentation."""
    value = parse_text(segmentation)
    if value is not segmentation:
        mended.add("mask written as text")
    if isinstance(value, list) and value:
        points = [_point(item) for item in value]
        if None not in points:
            mended.add("polygon whose points are pairs")
            yield [number for point in points for number in point or ()]
            return
        if not any(isinstance(item, list | dict) for item in value):
            if depth == _DEPTH:
                mended.add("polygon that is not in a list")
            yield value
            return
        if depth:
            mended |= {"mask in a list too many"} if depth < _DEPTH else set()
            for item in value:
                yield from () if is_empty(item) else _parts(item, mended, depth - 1)
            return
    if not is_empty(value):
        if isinstance(value, dict) and depth < _DEPTH:
            mended.add("run-length code in a list")
        yield value


def _point(item: Any) -> list | None:
    """Returns x and y of a point that is given as a pair or by name."""
    if isinstance(item, dict) and "x" in item and "y" in item:
        return [item["x"], item["y"]]
    pair = isinstance(item, list) and len(item) == 2
    return item if pair and not any(isinstance(number, list | dict) for number in item) else None


def _polygon(part: Any, mended: set[str]) -> Float[np.ndarray, "N"]:
    read = to_numbers(part)
    if read is None:
        in_range = isinstance(part, list) and None not in [to_number(number, np.inf) for number in part]
        far = f"polygon with a coordinate beyond {MAX_COORDINATE:,.0f} pixels"
        raise _Unusable(far if in_range else "polygon of other things than numbers")
    polygon, texts = np.array(read[0], np.float64), read[1]
    if len(polygon) % 2:
        raise _Unusable("polygon with an odd number of coordinates")
    if len(polygon) < 6:
        raise _Unusable("polygon with fewer than 3 points")
    if _is_too_long(polygon, np.abs(polygon).max()):
        raise _Unusable(f"polygon whose outline is longer than {MAX_OUTLINE:,.0f} pixels")
    if texts:
        mended.add("mask with numbers written as text")
    return polygon


def _rle(code: dict, height: int, width: int, mended: set[str]) -> dict:
    size, counts = code.get("size"), code.get("counts")
    if size != [height, width]:
        numbers = [to_whole(side) for side in size] if isinstance(size, list) else []
        if size is not None and numbers != [height, width]:
            raise _Unusable("run-length code of another size than the image")
        mended.add("run-length code whose size is missing or written as text")
    if isinstance(counts, str):
        if counts.startswith("b'") and counts.endswith("'"):  # str(bytes), as Python prints them
            counts = counts[2:-1].replace("\\\\", "\\")
            mended.add("run-length code written as Python prints bytes")
        counts = _runs(counts)
    elif isinstance(counts, list) and not all(type(count) is int for count in counts):
        counts = [to_whole(count) for count in counts]
        mended.add("run-length code with numbers written as text or float")
    # pycocotools decodes runs that do not fill the image into uninitialised memory
    whole = isinstance(counts, list) and all(count is not None and count >= 0 for count in counts)
    if not whole or sum(counts) != height * width:
        raise _Unusable("run-length code that does not fill the image")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _runs(counts: str) -> list[int] | None:
    """Returns the run lengths of a compressed RLE, or None if it is malformed.

    A character holds five bits, lowest first, and a sixth that is set if more follow; from the fourth run on,
    the difference to the run before the last is stored (pycocotools' maskApi.c).
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
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


def _why_empty(polygons: list[Float[np.ndarray, "N"]], height: int, width: int) -> str:
    if not polygons:
        return "run-length code of no pixel"
    points = np.concatenate(polygons).reshape(-1, 2)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return "polygon outside the image"
    return "polygon thinner than a pixel"
