"""Pictures: detections and ground truth over an image, contact sheets, training curves. All are uint8 RGB [H, W, 3]."""

import colorsys
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont

from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import Detections

Picture = UInt8[np.ndarray, "H W 3"]
Color = tuple[int, int, int]

_READABLE_SIDE = 700  # a picture is enlarged by a whole number up to about this many pixels before text goes into it
_MASK_OPACITY = 0.4


def read_image(path: str | Path) -> Picture:
    """Read an image of any common kind as uint8 RGB.

    Gray and palette images become RGB, an alpha channel is dropped, 16 bits are reduced to the upper 8. An EXIF
    orientation is ignored, as COCO's annotations do.

    Raises:
      InputError: the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                gray = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read image {path}: {reason}.") from error


def save_image(path: str | Path, image: Picture) -> None:
    """Write an image in the format that the file's name asks for.

    Raises:
      InputError: no such format, or the place cannot be written to.
    """
    try:
        place, encoded = epath.Path(path), io.BytesIO()
        Image.fromarray(image).save(encoded, Image.registered_extensions()[place.suffix.lower()])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded.getvalue())
    except KeyError:
        raise InputError(f"cannot write image {path}: unknown file extension: {place.suffix}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write image {path}: {reason}.") from error


def draw_detections(
    image: Picture,
    detections: Detections,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    keypoint_threshold: float = 0.02,
    skeleton: Sequence[tuple[int, int]] = (),
    scale: int | None = None,
) -> Picture:
    """Draw masks, boxes, labels and keypoints over an image, those of them that there are.

    Args:
      image: left as it is.
      detections: in its pixels. Detection i has the same colour in every picture, whatever the threshold.
      class_names: of classes 0..K-1.
      score_threshold: detections below it are left out.
      keypoint_threshold: keypoints whose score is not above it are left out. A score is a share of the softmax over
        the positions in the box: spread evenly over the fiftieth part of a map of 56 x 56 it would be 0.016.
      skeleton: pairs of keypoints to join.
      scale: whole factor by which the picture is enlarged; None enlarges small images until text is readable.

    Returns:
      A picture of scale * H x scale * W. Labels that would cover another label or a small object are left out; the name
      of an only class is left out of labels that it would make wider than their box.
    """
    shown = np.flatnonzero(np.asarray(detections.scores) >= score_threshold)
    scores = [f"{detections.scores[i]:.2f}" for i in shown]
    labels = [f"{class_names[detections.class_ids[i]]} {score}" for i, score in zip(shown, scores, strict=True)]
    shorter = scores if len(class_names) == 1 else labels
    return _draw(image, detections, shown, labels, shorter, skeleton, keypoint_threshold, scale)


def draw_ground_truth(
    image: Picture,
    boxes: Float[np.ndarray, "G 4"],
    class_ids: Int[np.ndarray, "G"],
    masks: Bool[np.ndarray, "G H W"] | None,
    class_names: Sequence[str],
    *,
    keypoints: Float[np.ndarray, "G J 3"] | None = None,
    skeleton: Sequence[tuple[int, int]] = (),
    scale: int | None = None,
) -> Picture:
    """Draw annotated objects the way `draw_detections` draws detections, without scores.

    A keypoint's third number is its visibility here; those of 0 are left out.
    """
    objects = Detections(boxes, np.ones(len(boxes), np.float32), class_ids, masks, keypoints)
    labels = [class_names[class_id] for class_id in class_ids]
    shorter = [""] * len(labels) if len(class_names) == 1 else labels
    return _draw(image, objects, np.arange(len(boxes)), labels, shorter, skeleton, 0.0, scale)


def contact_sheet(
    pictures: Sequence[Picture], columns: int, titles: Sequence[str] | None = None, pad: int = 8
) -> Picture:
    """Pictures of any sizes in rows on white, each in the middle of its cell and under its title.

    Args:
      pictures: one or more.
      columns: pictures a row, at most.
      titles: one a picture.
      pad: pixels between the pictures and around them.

    Raises:
      InputError: no picture, no column, or another number of titles.
    """
    if not pictures or columns < 1:
        raise InputError(f"a contact sheet needs pictures and columns, not {len(pictures)} and {columns}.")
    if titles is not None and len(titles) != len(pictures):
        raise InputError(f"a contact sheet of {len(pictures)} pictures needs as many titles, not {len(titles)}.")
    columns = min(columns, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(picture.shape[1] for picture in pictures[column::columns]) for column in range(columns)]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    band = 0 if titles is None else 24  # for the title above each row
    size = sum(widths) + pad * (columns + 1), sum(heights) + (pad + band) * len(rows) + pad
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        left = sum(widths[:column]) + pad * (column + 1)
        top = sum(heights[:row]) + (pad + band) * row + pad
        if titles is not None:
            pen.text((left + widths[column] / 2, top + band / 2), titles[index], "black", _font(15), anchor="mm")
        corner = left + (widths[column] - picture.shape[1]) // 2, top + band + (heights[row] - picture.shape[0]) // 2
        sheet.paste(Image.fromarray(picture), corner)
    return np.array(sheet)


def plot_curves(
    history: Sequence[Mapping[str, Any]], path: str | Path, evaluations: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Save the curves of a training run as a PNG: losses over the learning rate, and evaluations beside them if any.

    Args:
      history: {"step": ..., "loss": ..., "loss_mask": ..., "learning_rate": ...}; each key that starts with "loss" is a
        smoothed line over the faint raw values.
      path: where to save.
      evaluations: {"step": ..., "segm/AP": ...} in percent; None where a figure is undefined.
    """
    figure = Figure(figsize=(13 if evaluations else 7.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2 if evaluations else 1, height_ratios=(4, 1))
    losses = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0], sharex=losses)
    for name in _keys(history, "loss"):
        steps, values = _series(history, name)
        (line,) = losses.plot(steps, _smooth(values), label=name, linewidth=2.2 if name == "loss" else 1.3)
        losses.plot(steps, values, color=line.get_color(), alpha=0.18, linewidth=0.8)
    losses.set_ylabel("loss")
    if any(value > 0 for line in losses.lines for value in line.get_ydata()):
        losses.set_yscale("log")
        losses.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_formatter(NullFormatter())
    losses.tick_params(labelbottom=False)
    rate.plot(*_series(history, "learning_rate"), color="0.3", linewidth=1.3)
    rate.set(xlabel="step", ylabel="learning rate")
    axes = [losses, rate]
    if evaluations:
        average_precision = figure.add_subplot(grid[:, 1], sharex=losses)
        for name in _keys(evaluations, ""):
            average_precision.plot(*_series(evaluations, name), marker="o", markersize=3.5, label=name)
        average_precision.set(xlabel="step", ylabel="percent")
        average_precision.set_ylim(bottom=0)
        axes.append(average_precision)
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize="small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save_figure(figure, path)


def plot_comparison(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path) -> None:
    """Save loss, box AP and mask AP of several runs over their steps as a PNG; ``runs``: by name, records as those of ``plot_curves``, of both kinds."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    for axis, (key, label) in zip(axes, (("loss", "loss"), ("bbox/AP", "box AP, percent"), ("segm/AP", "mask AP, percent")), strict=True):
        for name, records in runs.items():
            steps, values = _series(records, key)
            if key != "loss":
                axis.plot(steps, values, marker="o", markersize=3.5)
                continue
            (line,) = axis.plot(steps, _smooth(values, 8), label=name)
            axis.plot(steps, values, color=line.get_color(), alpha=0.18, linewidth=0.8)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yscale("log")
    for bound in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        bound("{x:g}")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=len(runs), loc="outside upper center")
    _save_figure(figure, path)


def _save_figure(figure, path):
    place, encoded = epath.Path(path), io.BytesIO()
    figure.savefig(encoded, dpi=110, format=place.suffix[1:])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(encoded.getvalue())


def _draw(
    image: Picture,
    detections: Detections,
    shown: Int[np.ndarray, "S"],
    labels: Sequence[str],
    shorter: Sequence[str],
    skeleton: Sequence[tuple[int, int]],
    keypoint_threshold: float,
    scale: int | None,
) -> Picture:
    """Detections `shown`, with their labels or, where those are wider than the box, the shorter ones."""
    if scale is None:
        scale = max(1, round(_READABLE_SIDE / max(image.shape[:2])))
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) if scale > 1 else image.copy()
    width = max(2, round(min(canvas.shape[:2]) / 300))
    masks = {} if detections.masks is None else {index: _enlarge(detections.masks[index], scale) for index in shown}
    # Fillings first and the best last, so that no object's outline disappears below another's filling.
    for index, mask in reversed(masks.items()):
        _fill(canvas, mask, _color(index))
    for index in reversed(shown):
        if index in masks:
            contours, _ = cv2.findContours(masks[index], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, contours, -1, _color(index), width, cv2.LINE_AA)
        x1, y1, x2, y2 = _corners(detections.boxes[index], scale)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), _color(index), width - 1)
    if detections.keypoints is not None:
        for index in reversed(shown):
            x, y, score = np.transpose(detections.keypoints[index])
            points = np.stack([x, y], axis=1) * scale
            _draw_keypoints(canvas, points, score > keypoint_threshold, skeleton, _color(index), width)
    return _write_labels(canvas, [_corners(detections.boxes[i], scale) for i in shown], labels, shorter, shown)


def _enlarge(mask: Bool[np.ndarray, "H W"], scale: int) -> UInt8[np.ndarray, "h w"]:
    """Enlarged with smooth instead of stepped edges; 0 or 1."""
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
    canvas: Picture,
    positions: Float[np.ndarray, "J 2"],
    seen: Bool[np.ndarray, "J"],
    skeleton: Sequence[tuple[int, int]],
    color: Color,
    width: int,
) -> None:
    points = [(round(x), round(y)) if shown else None for (x, y), shown in zip(positions.tolist(), seen, strict=True)]
    for first, second in skeleton:
        if points[first] and points[second]:
            cv2.line(canvas, points[first], points[second], color, width + 1, cv2.LINE_AA)
    for point in filter(None, points):
        cv2.circle(canvas, point, width + 2, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(canvas, point, width + 1, color, -1, cv2.LINE_AA)


def _write_labels(canvas: Picture, corners, labels: Sequence[str], shorter: Sequence[str], indices) -> Picture:
    """Each label above its box, else within or below it, where it covers no other and no small box; best first."""
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    font = _font(max(12, min(16, min(canvas.shape[:2]) // 36)))
    height = sum(font.getmetrics()) + 2
    taken = [box for box in corners if (box[2] - box[0]) * (box[3] - box[1]) < (3 * height) ** 2]
    for (x1, y1, x2, y2), label, short, index in zip(corners, labels, shorter, indices, strict=True):
        if pen.textlength(label, font) + 6 > x2 - x1:
            label = short
        if not label:
            continue
        length = round(pen.textlength(label, font)) + 6
        left = min(max(x1, 0), max(canvas.shape[1] - length, 0))
        for top in (y1 - height, y1, y2 + 1):
            place = (left, top, left + length, top + height)
            if top >= 0 and place[3] <= canvas.shape[0] and not any(_touch(place, other) for other in taken):
                taken.append(place)
                pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), _color(index))
                luminance = np.dot(_color(index), (0.299, 0.587, 0.114))
                pen.text((left + 3, top + 1), label, "black" if luminance > 140 else "white", font)
                break
    return np.array(picture)


def _touch(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _corners(box: Float[np.ndarray, "4"], scale: int) -> tuple[int, int, int, int]:
    """The first and the last pixel inside a box: a box ends where its last pixel does."""
    x1, y1, x2, y2 = (np.asarray(box, np.float64) * scale).round().astype(int).tolist()
    return x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)


def _color(index: int) -> Color:
    """Hues a golden ratio apart: however many there are, neighbours in the list differ clearly."""
    hue = (0.02 + index * 0.61803398875) % 1.0
    lightness = (0.95, 1.0, 0.8)[index % 3]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.85, lightness))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib brings a font that covers more than ASCII."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def _keys(records: Sequence[Mapping[str, Any]], prefix: str) -> list[str]:
    """What has values to draw, in order of appearance."""
    names = dict.fromkeys(name for record in records for name, value in record.items() if value is not None)
    return [name for name in names if name.startswith(prefix) and name != "step"]


def _series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    known = [(record["step"], float(record[name])) for record in records if record.get(name) is not None]
    return [step for step, _ in known], [value for _, value in known]


def _smooth(values: Sequence[float], parts: int = 50) -> list[float]:
    """Running mean that forgets, over about one of so many parts of the run; values that are not finite do not enter it."""
    keep = 1 - 1 / max(1.0, min(100.0, len(values) / parts))
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        if np.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smoothed.append(total / weight if weight else np.nan)
    return smoothed
