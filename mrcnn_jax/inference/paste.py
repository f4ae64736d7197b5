"""Pasting of predicted masks into the pixels of the image, on the host in NumPy (paper section 3.1,
"Inference").

Both conventions sample the M x M mask bilinearly, with zeros around it, at the centres of the pixels; they
differ only in the box that the mask is stretched over. A bilinear sample is separable: first across the
columns of the mask, then down its rows.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import Window
from mrcnn_jax.typing import Bool, Float, Int

Convention = Literal["exact", "integer"]
Masks = Float[np.ndarray, "N M M"]
Boxes = Float[np.ndarray, "N 4"]
Floats = Float[np.ndarray, "p"]


class Placement(NamedTuple):
    """Places of N masks in an image; x before y.

    Attributes:
        start: corner of the box that the mask is stretched over, in pixels.
        scale: cells per pixel.
        first: first pixel of the mask's window, half a cell before its box.
        last: first pixel after the window; ``first`` where nothing is drawn.
    """

    start: Float[np.ndarray, "N 2"]
    scale: Float[np.ndarray, "N 2"]
    first: Int[np.ndarray, "N 2"]
    last: Int[np.ndarray, "N 2"]


def paste_masks(
    masks: Masks, boxes: Boxes, height: int, width: int, threshold: float = 0.5,
    convention: Convention = "exact",
) -> Bool[np.ndarray, "N {height} {width}"]:  # fmt: skip
    """Pastes masks into an image and binarises them.

    Args:
        masks: probabilities inside each box.
        boxes: xyxy pixels of the image; they may reach beyond it. Objects that cover no pixel centre, and
            boxes outside, without area or not finite give an empty mask.
        height: of the image.
        width: of the image.
        threshold: probability from which a pixel is part of the object.
        convention: "exact" stretches the mask over the real-valued box and keeps probabilities >= threshold
            (Detectron2); "integer" pads the mask by one cell, enlarges the box likewise, truncates its
            corners to whole pixels and keeps probabilities > threshold (Detectron, torchvision).

    Raises:
        InputError: unknown convention.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    keep = comparison(convention)
    for index, window, probabilities in samples(masks, boxes, height, width, convention):
        keep(probabilities, threshold, out=pasted[index][window])
    return pasted


def comparison(convention: str) -> np.ufunc:
    """Returns the comparison of probabilities with the threshold; InputError for an unknown convention."""
    if convention not in ("exact", "integer"):
        raise InputError(f'unknown mask pasting convention "{convention}": it must be "exact" or "integer"')
    return np.greater_equal if convention == "exact" else np.greater


def place(boxes: Boxes, cells: int, height: int, width: int, convention: str) -> Placement:
    """Places masks of cells x cells in an image as their boxes and the convention say."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(axis=1, keepdims=True)
    drawn = has_area & np.isfinite(boxes).all(axis=1, keepdims=True)
    boxes = np.where(drawn, boxes, np.float32([0, 0, 1, 1]))  # an arbitrary box where nothing is drawn
    boxes = _stretched_boxes(boxes, cells, convention).astype(np.float64)
    scale = cells / (boxes[:, 2:] - boxes[:, :2])
    limits = np.array([width, height])
    first = np.clip(np.floor(boxes[:, :2] - 0.5 / scale), 0, limits).astype(int)
    last = np.clip(np.ceil(boxes[:, 2:] + 0.5 / scale), first, limits).astype(int)
    return Placement(boxes[:, :2], scale, first, np.where(drawn, last, first))


def neighbours(
    pixels: Int[np.ndarray, "p"], start: float | Floats, scale: float | Floats, cells: int
) -> tuple[Int[np.ndarray, "p"], Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Returns the cell before each pixel's centre along one axis, its weight, and that of the next cell.

    A cell of zeros at both ends is counted: the mask's cell i is cell i + 1.
    """
    position = np.clip((pixels + 0.5 - start) * scale - 0.5, -1, cells)  # of the mask's cell i: i
    cell = np.minimum(np.floor(position), cells - 1)
    before, after = 1 - (position - cell), 1 - (cell + 1 - position)
    return cell.astype(int) + 1, before.astype(np.float32), after.astype(np.float32)


def sample_columns(
    mask: Float[np.ndarray, "M M"], where: Placement, index: int, columns: Int[np.ndarray, "w"]
) -> Float[np.ndarray, "h w"]:
    """Samples a mask at the pixels of some columns of its window; ``index`` is its row in ``where``."""
    rows = np.arange(where.first[index, 1], where.last[index, 1])
    framed = np.pad(mask, 1)
    for pixels, start, scale in zip((columns, rows), where.start[index], where.scale[index], strict=True):
        cell, before, after = neighbours(pixels, start, scale, len(mask))
        # rounded as by a fused multiply-add: in float64 the second product is exact
        first, second = framed[:, cell] * before, np.float64(framed[:, cell + 1]) * after
        framed = (first + second).astype(np.float32).T  # now by columns, for the other axis
    return framed


def samples(
    masks: Masks, boxes: Boxes, height: int, width: int, convention: str
) -> Iterator[tuple[int, Window, Float[np.ndarray, "h w"]]]:
    """Yields each object's index, its window in the image, and the probabilities there."""
    masks = np.asarray(masks, np.float32)
    where = place(boxes, masks.shape[-1], height, width, convention)
    for index, ((x1, y1), (x2, y2)) in enumerate(zip(where.first, where.last, strict=True)):
        window = slice(y1, y2), slice(x1, x2)
        yield index, window, sample_columns(masks[index], where, index, np.arange(x1, x2))


def _stretched_boxes(boxes: Boxes, cells: int, convention: str) -> Boxes:
    """Returns the real-valued boxes that the M x M masks are stretched over."""
    comparison(convention)
    if convention == "exact":
        return boxes
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * ((cells + 2) / cells)
    first, last = np.trunc(centre - half), np.trunc(centre + half)  # pixels at both ends belong to the box
    # The padded mask fills these pixels, so the mask itself fills them without the rim of one cell. The rim
    # holds zeros, so nothing else distinguishes the two conventions.
    rim = (last + 1 - first) / np.float32(cells + 2)
    return np.concatenate([first + rim, last + 1 - rim], axis=1)
