"""Judgement of one COCO annotation: each part on its own, so that a bad one costs no good one."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from mrcnn_jax.data.formats.coco_masks import Judged, extent, judge_mask
from mrcnn_jax.data.formats.coco_numbers import (
    MAX_COORDINATE,
    is_empty,
    parse_text,
    to_flag,
    to_number,
    to_numbers,
)
from mrcnn_jax.data.formats.conversion_report import ConversionReport
from mrcnn_jax.data.formats.listing import DERIVED, place_of

Box = tuple[float, float, float, float]
_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_NUMBERS = {int, float}
_MAX_AREA = MAX_COORDINATE**2


class Judgement(NamedTuple):
    """Usable parts of an annotation."""

    box: Box  # xyxy, as annotated: not clipped to the image
    rle: str  # counts of the compressed RLE; "" without a mask
    area: float
    crowd: bool
    keypoints: Float[np.ndarray, "J 3"] | None  # None without any
    outline: Box | None  # of the box as given or the polygons, also outside the image; None if neither says


def judge(
    annotation: dict, height: int, width: int, keypoints: int, report: ConversionReport
) -> Judgement | None:
    """Judges an annotation of an image of this size.

    Args:
        keypoints: number of keypoints of the annotation's class.
        report: takes the flaws.

    Returns:
        What is usable, or None if neither box nor mask is.
    """
    id_ = place_of(annotation)
    segmentation = annotation.get("segmentation")
    mask = judge_mask(segmentation, height, width) if segmentation else Judged()
    given = annotation.get("bbox")
    given = _derive_box(segmentation, mask) if given is DERIVED else given
    box, dropped, mended = judge_box(given, height, width)
    for kind in mended + mask.mended:
        report.mended[kind].add(id_)
    outline = box
    if box is None:
        if mask.part is None:
            report.left_out[dropped or mask.dropped or "neither a box nor a mask"].add(id_)
            return None
        x, y, w, h = coco_mask.toBbox(mask.part).tolist()
        box, outline = (x, y, x + w, y + h), extent(segmentation)
        report.mended["box derived from the mask" + (f": {dropped}" if dropped else "")].add(id_)
    elif mask.dropped:
        report.dropped[mask.dropped].add(id_)
    area = annotation.get("area")
    if not (type(area) in _NUMBERS and 0 < area <= _MAX_AREA):
        area = float(coco_mask.area(mask.part)) if mask.part else (box[2] - box[0]) * (box[3] - box[1])
        if annotation.get("area") is not DERIVED:
            report.mended["area derived from the mask or the box"].add(id_)
    crowd = annotation.get("iscrowd", 0)
    if type(crowd) is not int or crowd not in (0, 1):
        crowd, flaw = judge_crowd(crowd)
        if flaw:
            report.mended[flaw].add(id_)
    points = None
    if given := annotation.get("keypoints"):
        points, dropped, mended = judge_keypoints(given, keypoints)
        for kind in mended:
            report.mended[kind].add(id_)
        if dropped:
            report.dropped[dropped].add(id_)
    rle = mask.part["counts"].decode() if mask.part else ""
    return Judgement(box, rle, area, bool(crowd), points, outline)


def _derive_box(segmentation: Any, mask: Judged) -> list[float] | None:
    """Returns x, y, width, height of polygons, also outside the image, or of a mask; None without one."""
    if mask.part is None:
        return None
    if isinstance(segmentation, dict) or any(isinstance(part, dict) for part in segmentation):
        return coco_mask.toBbox(mask.part).tolist()
    x1, y1, x2, y2 = extent(segmentation) or (0, 0, 0, 0)
    return [x1, y1, x2 - x1, y2 - y1]


def judge_box(box: Any, height: int, width: int) -> Judged:
    """Converts COCO's x, y, width, height to x1, y1, x2, y2, as annotated: not clipped to the image."""
    numbers, mended = box, ()
    if type(box) is not list or len(box) != 4 or not _NUMBERS.issuperset(map(type, box)):
        if is_empty(box):
            return Judged()
        numbers, mended = _mend_box(box)
        if numbers is None:
            return Judged(dropped="box that is not 4 numbers")
    x, y, w, h = numbers
    if not (0 < w <= MAX_COORDINATE and 0 < h <= MAX_COORDINATE):
        zero = x == y == w == h == 0
        return Judged(dropped=None if zero else "box without a positive, finite width and height")
    if not (-MAX_COORDINATE <= x <= MAX_COORDINATE and -MAX_COORDINATE <= y <= MAX_COORDINATE):
        return Judged(dropped=f"box whose corner is no number within {MAX_COORDINATE:,.0f} pixels")
    x1, y1, x2, y2 = x, y, x + w, y + h
    if min(x2, width) - max(x1, 0) < 1 or min(y2, height) - max(y1, 0) < 1:
        # In float32, as in the model, where a sliver would have a width of zero.
        seen = np.clip(np.float32([x1, y1, x2, y2]), 0, np.float32([width, height, width, height]))
        if seen[2] <= seen[0] or seen[3] <= seen[1]:
            return Judged(dropped="box wholly outside the image")
    return Judged((x1, y1, x2, y2), None, mended)


def _mend_box(box: Any) -> tuple[list[float] | None, tuple[str, ...]]:
    """Returns the four numbers of a box that is written as an object, in a list too many, or as text."""
    value = parse_text(box)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        names = next((names for names in _SIDES if value.keys() >= set(names)), ())
        value = [value[name] for name in names]
    read = to_numbers(value)
    if read is None or len(read[0]) != 4:
        return None, ()
    return read[0], ("box in another form than four numbers",)


def judge_crowd(value: Any) -> tuple[bool, str | None]:
    """Returns whether ``iscrowd`` is set, in whatever form, and the flaw that was mended, if any."""
    crowd = to_flag(value)
    if crowd is None:
        return False, "iscrowd that is neither 0 nor 1: taken as 0"
    return crowd, "iscrowd written as text" if isinstance(value, str) and value else None


def judge_keypoints(keypoints: Any, number: int) -> Judged:
    """Returns x, y, visibility of each of ``number`` keypoints.

    A keypoint without finite coordinates, or with a visibility other than 0, 1, 2, becomes one that is not
    labelled (0, 0, 0).
    """
    values = parse_text(keypoints)
    mended = set() if values is keypoints else {"keypoints written as text"}
    if isinstance(values, list) and all(isinstance(value, list) for value in values):
        values = [number for value in values for number in value]
        mended.add("keypoints in lists of their own")
    if is_empty(values) or (isinstance(values, list) and not any(values)):
        return Judged()
    if not number:
        return Judged(dropped="keypoints of a class without keypoints")
    if isinstance(values, list) and len(values) == 2 * number:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [value for x, y in pairs for value in (x, y, 2 * bool(to_number(x) or to_number(y)))]
        mended.add("keypoints without visibility: taken as visible")
    if not isinstance(values, list) or len(values) != 3 * number:
        return Judged(dropped=f"keypoints: not {number} of 3 numbers each")
    points = []
    for x, y, visibility in zip(*(values[i::3] for i in range(3)), strict=True):
        seen = {True: 2, False: 0}[visibility] if isinstance(visibility, bool) else to_number(visibility)
        point = to_number(x), to_number(y), seen
        if seen not in (0, 1, 2):
            mended.add("keypoint with a visibility other than 0, 1, 2: taken as not labelled")
        elif None in point:
            mended |= {"keypoint without finite coordinates: taken as not labelled"} if seen else set()
        elif any(type(value) not in (int, float) for value in (x, y, visibility)):
            mended.add("keypoint with a visibility or coordinates of another type")
        points.append(point if seen in (0, 1, 2) and None not in point else (0, 0, 0))
    return Judged(np.array(points, np.float32), None, tuple(sorted(mended)))
