"""Conversion of the box, mask and keypoints of one COCO annotation; BadAnnotation says what is wrong.

Masks become compressed RLE as pycocotools' ``annToRLE`` makes them.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

MAX_COORDINATE = 1e6  # in pixels; the rasteriser walks along every edge, which takes for ever at 1e12


class BadAnnotation(Exception):
    """An annotation that cannot be used; the message is the kind under which it is reported."""


def is_id(value: Any) -> bool:
    """Returns whether a value is a whole number; true and false, which are integers in Python, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(is_number, values))


def to_rle(segmentation: Any, height: int, width: int) -> tuple[dict, bool]:
    """Returns the compressed RLE of a segmentation, and whether parts of a polygon were dropped."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [height, width]:
            raise BadAnnotation("RLE of another size than the image")
        counts = segmentation.get("counts")
        counts = _runs(counts) if isinstance(counts, str) else counts
        # pycocotools decodes runs that do not fill the image into uninitialised memory
        whole = isinstance(counts, list) and all(is_id(count) and count >= 0 for count in counts)
        if not whole or sum(counts) != height * width:
            raise BadAnnotation("malformed RLE")
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width), False
    parts = segmentation if isinstance(segmentation, list) else [None]
    if not all(_are_numbers(part) and len(part) % 2 == 0 for part in parts):
        raise BadAnnotation("malformed polygon")
    if any(abs(number) > MAX_COORDINATE for part in parts for number in part):
        raise BadAnnotation("malformed polygon")
    polygons = [part for part in parts if len(part) >= 6]
    if not polygons:
        raise BadAnnotation("polygon with fewer than 3 points")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)), len(polygons) < len(parts)


def _runs(counts: str) -> list[int] | None:
    """Returns the run lengths of a compressed RLE, or None if it is malformed.

    A character holds five bits, lowest first, and a sixth that is set if more follow; from the fourth run on,
    the difference to the run before the last is stored (pycocotools' maskApi.c).
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


def to_xyxy(box: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """Converts COCO's x, y, width, height to x1, y1, x2, y2, as annotated: not clipped to the image."""
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box) or box[2] <= 0 or box[3] <= 0:
        raise BadAnnotation("box without a positive, finite width and height")
    x1, y1, x2, y2 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    # In float32, as in the model, where a sliver would have a width of zero.
    seen = np.clip(np.float32([x1, y1, x2, y2]), 0, np.float32([width, height, width, height]))
    if seen[2] <= seen[0] or seen[3] <= seen[1]:
        raise BadAnnotation("box wholly outside the image")
    return x1, y1, x2, y2


def to_keypoints(keypoints: Any, number: int) -> Float[np.ndarray, "J 3"]:
    """Returns x, y, visibility of each of ``number`` keypoints; all 0 for an annotation without any."""
    if not number or keypoints is None:
        return np.zeros((number, 3), np.float32)
    if not isinstance(keypoints, list) or len(keypoints) != 3 * number:
        raise BadAnnotation(f"not {number} keypoints of 3 numbers each")
    if not _are_numbers(keypoints) or not all(visibility in (0, 1, 2) for visibility in keypoints[2::3]):
        raise BadAnnotation("keypoint with a number that is not finite or a visibility other than 0, 1, 2")
    return np.float32(keypoints).reshape(number, 3)
