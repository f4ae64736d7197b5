"""Overlays of detections and of ground truth on an image. Pictures are uint8 RGB [H, W, 3]."""

import colorsys
import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrcnn_jax.structures import Detections
from mrcnn_jax.typing import Bool, Float, Int, UInt8

Picture = UInt8[np.ndarray, "H W 3"]
Color = tuple[int, int, int]

_READABLE_SIDE = 700  # small images are enlarged by a whole number, up to about this many pixels
_MASK_OPACITY = 0.4


def draw_detections(
    image: Picture, detections: Detections, *, score_threshold: float = 0.5, keypoint_threshold: float = 0.02,
    skeleton: Sequence[tuple[int, int]] = (), scale: int | None = None,
) -> Picture:  # fmt: skip
    """Draws masks, boxes, labels and keypoints over an image, as far as there are any.

    Args:
        image: not changed.
        detections: in its pixels. Detection i has the same colour in every picture, whatever the threshold.
        score_threshold: detections below it are left out.
        keypoint_threshold: keypoints with scores up to it are left out. A score is a share of the softmax
            over the positions in the box: spread over a fiftieth of a 56 x 56 map it is 0.016.
        skeleton: pairs of keypoints to join.
        scale: whole factor of enlargement; None enlarges small images until text is readable.

    Returns:
        A picture of scale * H x scale * W. Labels that would cover another label or a small object are left
        out; the name of an only class is left out of labels that it would make wider than their box.
    """
    names, shown = detections.class_names, np.flatnonzero(np.asarray(detections.scores) >= score_threshold)
    scores = [f"{detections.scores[index]:.2f}" for index in shown]
    classes = np.asarray(detections.class_ids)[shown]
    titles = [names[class_id] if names else f"class {class_id}" for class_id in classes]
    labels = [f"{title} {score}" for title, score in zip(titles, scores, strict=True)]
    short_labels = scores if len(names) == 1 else labels
    return _draw(image, detections, shown, labels, short_labels, skeleton, keypoint_threshold, scale)


def draw_ground_truth(
    image: Picture, boxes: Float[np.ndarray, "G 4"], class_ids: Int[np.ndarray, "G"],
    masks: Bool[np.ndarray, "G H W"] | None, class_names: Sequence[str], *,
    keypoints: Float[np.ndarray, "G J 3"] | None = None, skeleton: Sequence[tuple[int, int]] = (),
    scale: int | None = None,
) -> Picture:  # fmt: skip
    """Draws annotated objects like ``draw_detections``, without scores.

    The third number of a keypoint is its visibility; keypoints of visibility 0 are left out.
    """
    objects = Detections(boxes, np.ones(len(boxes), np.float32), class_ids, masks, keypoints)
    labels = [class_names[class_id] for class_id in class_ids]
    short_labels = [""] * len(labels) if len(class_names) == 1 else labels
    return _draw(image, objects, np.arange(len(boxes)), labels, short_labels, skeleton, 0.0, scale)


def _draw(
    image: Picture, detections: Detections, shown: Int[np.ndarray, "S"], labels: Sequence[str],
    short_labels: Sequence[str], skeleton: Sequence[tuple[int, int]], keypoint_threshold: float,
    scale: int | None,
) -> Picture:  # fmt: skip
    """Draws the detections with indices ``shown``; their labels are shortened if wider than the box."""
    if scale is None:
        scale = max(1, round(_READABLE_SIDE / max(image.shape[:2])))
    canvas = image.copy()
    if scale > 1:
        canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    width = max(2, round(min(canvas.shape[:2]) / 300))
    masked = () if detections.masks is None else shown
    masks = {index: _enlarge(detections.masks[index], scale) for index in masked}
    boxes = {index: _corners(detections.boxes[index], scale) for index in shown}
    # fillings first and the best last, so that no object's outline disappears below another's filling
    for index, mask in reversed(masks.items()):
        _fill(canvas, mask, _color(index))
    for index in reversed(shown):
        if index in masks:
            contours, _ = cv2.findContours(masks[index], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, contours, -1, _color(index), width, cv2.LINE_AA)
        cv2.rectangle(canvas, boxes[index][:2], boxes[index][2:], _color(index), width - 1)
    for index in () if detections.keypoints is None else reversed(shown):
        x, y, score = np.transpose(detections.keypoints[index])
        points = np.stack([x, y], axis=1) * scale
        _draw_keypoints(canvas, points, score > keypoint_threshold, skeleton, _color(index), width)
    return _write_labels(canvas, boxes, labels, short_labels)


def _enlarge(mask: Bool[np.ndarray, "H W"], scale: int) -> UInt8[np.ndarray, "h w"]:
    """Enlarges a mask with smooth instead of stepped edges, to 0 or 1."""
    if scale == 1:
        return mask.astype(np.uint8)
    smooth = cv2.resize(mask.astype(np.uint8) * 255, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return (smooth > 127).astype(np.uint8)


def _fill(canvas: Picture, mask: UInt8[np.ndarray, "H W"], color: Color) -> None:
    x, y, width, height = cv2.boundingRect(mask)
    window = canvas[y : y + height, x : x + width]
    inside = mask[y : y + height, x : x + width].astype(bool)
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
    canvas: Picture, boxes: dict[int, tuple[int, ...]], labels: Sequence[str], short_labels: Sequence[str]
) -> Picture:
    """Writes labels above, within or below their boxes, unless they cover another or a small box."""
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    font = load_font(max(12, min(16, min(canvas.shape[:2]) // 36)))
    height = sum(font.getmetrics()) + 2
    taken = [box for box in boxes.values() if (box[2] - box[0]) * (box[3] - box[1]) < (3 * height) ** 2]
    for (index, (x1, y1, x2, y2)), label, short in zip(boxes.items(), labels, short_labels, strict=True):
        if pen.textlength(label, font) + 6 > x2 - x1:
            label = short
        if not label:
            continue
        length = round(pen.textlength(label, font)) + 6
        left = min(max(x1, 0), max(canvas.shape[1] - length, 0))
        for top in (y1 - height, y1, y2 + 1):
            area = (left, top, left + length, top + height)
            if top >= 0 and area[3] <= canvas.shape[0] and not any(_touch(area, other) for other in taken):
                taken.append(area)
                pen.rectangle((area[0], area[1], area[2] - 1, area[3] - 1), _color(index))
                luminance = np.dot(_color(index), (0.299, 0.587, 0.114))
                pen.text((left + 3, top + 1), label, "black" if luminance > 140 else "white", font)
                break
    return np.array(picture)


def _touch(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _corners(box: Float[np.ndarray, "4"], scale: int) -> tuple[int, int, int, int]:
    """Returns the first and the last pixel inside a box: a box ends where its last pixel does."""
    x1, y1, x2, y2 = (np.asarray(box, np.float64) * scale).round().astype(int).tolist()
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def _color(index: int) -> Color:
    """Returns hues a golden ratio apart: neighbours in the list differ clearly, however many there are."""
    hue = (0.02 + index * 0.61803398875) % 1.0
    lightness = (0.95, 1.0, 0.8)[index % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, lightness))


@functools.cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Loads the font that Matplotlib brings along, which covers more than ASCII."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
