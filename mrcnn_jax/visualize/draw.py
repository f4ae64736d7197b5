"""Overlays of detections and of ground truth on an image. Pictures are uint8 RGB [H, W, 3]."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw

from mrcnn_jax.data.rgb_arrays import require_rgb
from mrcnn_jax.detections import Detections
from mrcnn_jax.run_length_masks import Masks, RunLengthMasks
from mrcnn_jax.typing import Bool, Float, Int, UInt8
from mrcnn_jax.visualize.text import legible, load_font

Picture = UInt8[np.ndarray, "H W 3"]
Color = tuple[int, int, int]
ColorBy = Literal["object", "class"]
"""A colour for each object, or one for each class."""

_READABLE_SIDE = 700  # small images are enlarged by a whole number, up to about this many pixels
_MASK_OPACITY = 0.4


def draw_detections(
    image: Picture, detections: Detections, *, score_threshold: float = 0.5, keypoint_threshold: float = 0.02,
    skeleton: Sequence[tuple[int, int]] = (), scale: int | None = None, max_side: int | None = None,
    color_by: ColorBy = "object",
) -> Picture:  # fmt: skip
    """Draws masks, boxes, labels and keypoints over an image, as far as there are any.

    Args:
        image: not changed.
        detections: in its pixels.
        score_threshold: detections below it are left out.
        keypoint_threshold: keypoints with scores up to it are left out. A score is a share of the softmax
            over the positions in the box: spread over a fiftieth of a 56 x 56 map it is 0.016.
        skeleton: pairs of keypoints to join.
        scale: whole factor of enlargement; None enlarges small images until text is readable.
        max_side: pixels to which the longer side of a larger picture is reduced before anything is drawn.
        color_by: "object" gives detection i the same colour in every picture, whatever the threshold.

    Returns:
        A picture of scale * H x scale * W, or less with ``max_side``. Labels that would cover another label
        or a small object are left out; the name of an only class is left out of labels that it would make
        wider than their box.

    Raises:
        InputError: the image is no uint8 RGB array.
    """
    image = require_rgb(image)
    names, shown = detections.class_names, np.flatnonzero(np.asarray(detections.scores) >= score_threshold)
    scores = [f"{detections.scores[index]:.2f}" for index in shown]
    classes = np.asarray(detections.class_ids)[shown]
    titles = [legible(names[class_id]) if names else f"class {class_id}" for class_id in classes]
    labels = [f"{title} {score}" for title, score in zip(titles, scores, strict=True)]
    short_labels = scores if len(names) == 1 else labels
    colors = _colors(detections, shown, color_by)
    scale = _scale(image, scale, max_side)
    return _draw(image, detections, colors, labels, short_labels, skeleton, keypoint_threshold, scale)


def draw_ground_truth(
    image: Picture, boxes: Float[np.ndarray, "G 4"], class_ids: Int[np.ndarray, "G"], masks: Masks | None,
    class_names: Sequence[str], *, keypoints: Float[np.ndarray, "G J 3"] | None = None,
    skeleton: Sequence[tuple[int, int]] = (), scale: int | None = None, max_side: int | None = None,
    color_by: ColorBy = "object",
) -> Picture:  # fmt: skip
    """Draws annotated objects like ``draw_detections``, without scores.

    The third number of a keypoint is its visibility; keypoints of visibility 0 are left out.
    """
    image = require_rgb(image)
    objects = Detections(boxes, np.ones(len(boxes), np.float32), class_ids, masks, keypoints)
    labels = [legible(class_names[class_id]) for class_id in class_ids]
    short_labels = [""] * len(labels) if len(class_names) == 1 else labels
    colors = _colors(objects, np.arange(len(boxes)), color_by)
    scale = _scale(image, scale, max_side)
    return _draw(image, objects, colors, labels, short_labels, skeleton, 0.0, scale)


def _scale(image: Picture, scale: int | None, max_side: int | None) -> float:
    side = max(image.shape[:2])
    if scale is None:
        scale = max(1, round(_READABLE_SIDE / side))
    return scale if max_side is None else min(scale, max(1, max_side // side), max_side / side)


def _draw(
    image: Picture, detections: Detections, colors: Mapping[int, Color], labels: Sequence[str],
    short_labels: Sequence[str], skeleton: Sequence[tuple[int, int]], keypoint_threshold: float, scale: float,
) -> Picture:  # fmt: skip
    """Draws the detections with indices in ``colors``; their labels are shortened if wider than the box."""
    canvas = image.copy() if scale == 1 else _resized(image, scale)
    boxes = {index: _corners(detections.boxes[index], scale) for index in colors}
    widths = _line_widths(canvas, boxes)
    outlines = {}
    # fillings first and the best last, so that no object's outline disappears below another's filling
    for index in () if detections.masks is None else reversed(colors):
        corner, mask = _canvas_mask(detections.masks, index, scale)
        _fill(canvas, corner, mask, colors[index])
        framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
        offset = corner[0] - 1, corner[1] - 1
        outlines[index], _ = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=offset)
    for index in reversed(colors):
        cv2.drawContours(canvas, outlines.get(index, ()), -1, colors[index], widths[index], cv2.LINE_AA)
        cv2.rectangle(canvas, boxes[index][:2], boxes[index][2:], colors[index], max(1, widths[index] - 1))
    for index in () if detections.keypoints is None else reversed(colors):
        x, y, score = np.transpose(detections.keypoints[index])
        points = np.stack([x, y], axis=1) * scale
        _draw_keypoints(canvas, points, score > keypoint_threshold, skeleton, colors[index], widths[index])
    return _write_labels(canvas, boxes, labels, short_labels, colors)


def _line_widths(canvas: Picture, boxes: Mapping[int, tuple[int, ...]]) -> dict[int, int]:
    """Returns the width of each object's lines: by the size of the picture, thinner around small objects."""
    usual = max(2, round(math.sqrt(canvas.shape[0] * canvas.shape[1]) / 450))
    sides = {index: min(x2 - x1, y2 - y1) for index, (x1, y1, x2, y2) in boxes.items()}
    return {index: max(1, min(usual, side // 8)) for index, side in sides.items()}


def _resized(image: Picture, scale: float) -> Picture:
    interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _canvas_mask(masks: Masks, index: int, scale: float) -> tuple[tuple[int, int], UInt8[np.ndarray, "h w"]]:
    """Returns a mask at the scale of the picture, 0 or 1, cropped, and the x and y of the crop's corner."""
    if scale > 1:  # smooth instead of stepped edges
        full = np.asarray(masks[index], np.uint8) * 255
        smooth = cv2.resize(full, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        (rows, columns), mask = _crop(smooth > 127)
        return (columns.start, rows.start), mask.astype(np.uint8)
    (rows, columns), mask = masks.crop(index) if isinstance(masks, RunLengthMasks) else _crop(masks[index])
    mask = mask.astype(np.uint8)
    if scale == 1 or not mask.size:
        return (columns.start, rows.start), mask
    start, stop = np.transpose([(side.start, side.stop) for side in (rows, columns)])
    first, last = np.floor(start * scale).astype(int), np.ceil(stop * scale).astype(int)
    # framed by zeros, so that it begins and ends between pixels of the picture
    origin = np.round(first / scale).astype(int)
    framed = np.zeros(np.maximum(np.round(last / scale).astype(int), stop) - origin, np.uint8)
    framed[tuple(map(slice, start - origin, stop - origin))] = 255 * mask
    reduced = cv2.resize(framed, (last - first)[::-1].tolist(), interpolation=cv2.INTER_AREA)
    return (int(first[1]), int(first[0])), (reduced > 127).astype(np.uint8)


def _crop(mask: Bool[np.ndarray, "H W"]) -> tuple[tuple[slice, slice], Bool[np.ndarray, "h w"]]:
    x, y, width, height = cv2.boundingRect(np.asarray(mask).view(np.uint8))
    window = slice(y, y + height), slice(x, x + width)
    return window, mask[window]


def _fill(canvas: Picture, corner: tuple[int, int], mask: UInt8[np.ndarray, "h w"], color: Color) -> None:
    x, y = corner
    window = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    inside = mask[: window.shape[0], : window.shape[1]].astype(bool)
    window[inside] = (window[inside] * (1 - _MASK_OPACITY) + np.multiply(color, _MASK_OPACITY)).round()


def _draw_keypoints(
    canvas: Picture, positions: Float[np.ndarray, "J 2"], visible: Bool[np.ndarray, "J"],
    skeleton: Sequence[tuple[int, int]], color: Color, width: int,
) -> None:  # fmt: skip
    points = {joint: tuple(map(round, positions[joint].tolist())) for joint in np.flatnonzero(visible)}
    for first, second in skeleton:
        if first in points and second in points:
            cv2.line(canvas, points[first], points[second], color, width + 1, cv2.LINE_AA)
    for point in points.values():
        cv2.circle(canvas, point, width + 2, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, point, width + 1, color, -1, cv2.LINE_AA)


def _write_labels(
    canvas: Picture, boxes: dict[int, tuple[int, ...]], labels: Sequence[str], short_labels: Sequence[str],
    colors: Mapping[int, Color],
) -> Picture:  # fmt: skip
    """Writes labels above, within or below their boxes, unless they cover another or a small box."""
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    size = max(12, round(math.sqrt(canvas.shape[0] * canvas.shape[1]) / 80))
    height = sum(load_font(size).getmetrics()) + 2
    taken = [box for box in boxes.values() if (box[2] - box[0]) * (box[3] - box[1]) < (3 * height) ** 2]
    for (index, (x1, y1, x2, y2)), label, short in zip(boxes.items(), labels, short_labels, strict=True):
        if pen.textlength(label, load_font(size, label)) + 6 > x2 - x1:
            label = short
        if not label:
            continue
        font = load_font(size, label)
        length = round(pen.textlength(label, font)) + 6
        left = min(max(x1, 0), max(canvas.shape[1] - length, 0))
        for top in (y1 - height, y1, y2 + 1):
            area = (left, top, left + length, top + height)
            if top >= 0 and area[3] <= canvas.shape[0] and not any(_touch(area, other) for other in taken):
                taken.append(area)
                pen.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), colors[index])
                luminance = np.dot(colors[index], (0.299, 0.587, 0.114))
                pen.text((left + 3, top + 1), label, "black" if luminance > 140 else "white", font)
                break
    return np.array(picture)


def _touch(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _corners(box: Float[np.ndarray, "4"], scale: float) -> tuple[int, int, int, int]:
    """Returns the first and the last pixel inside a box: a box ends where its last pixel does."""
    x1, y1, x2, y2 = (np.asarray(box, np.float64) * scale).round().astype(int).tolist()
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def _colors(detections: Detections, shown: Int[np.ndarray, "S"], color_by: ColorBy) -> dict[int, Color]:
    """Returns the colour of each detection with an index in ``shown``."""
    keys = np.asarray(detections.class_ids) if color_by == "class" else np.arange(len(detections))
    return {int(index): _color(int(keys[index])) for index in shown}


def _color(index: int) -> Color:
    """Returns hues a golden ratio apart: neighbours in the list differ clearly, however many there are."""
    hue = (0.02 + index * 0.61803398875) % 1.0
    lightness = (0.95, 1.0, 0.8)[index % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, lightness))
