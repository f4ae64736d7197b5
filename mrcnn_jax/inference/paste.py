"""Pasting of predicted masks into the pixels of the image, on the host in NumPy (paper section 3.1,
"Inference").

Both conventions sample the M x M mask bilinearly, with zeros around it, at the centres of the pixels; they
differ only in the box that the mask is stretched over. A bilinear sample is separable, so an object costs two
small matrix products over the pixels of its own box, and an image full of small objects costs next to
nothing.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.results import encode_runs
from mrcnn_jax.run_length_masks import RunLengthMasks, Window
from mrcnn_jax.typing import Bool, Float, Int

Convention = Literal["exact", "integer"]
Masks = Float[np.ndarray, "N M M"]
Boxes = Float[np.ndarray, "N 4"]
_TILE_PIXELS = 2**21  # of a mask that are computed at once


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
    keep = _comparison(convention)
    for index, (window, probabilities) in _samples(masks, boxes, height, width, convention):
        keep(probabilities, threshold, out=pasted[index][window])
    return pasted


def paste_probabilities(
    masks: Masks, boxes: Boxes, height: int, width: int, convention: Convention = "exact"
) -> Float[np.ndarray, "N {height} {width}"]:
    """Pastes masks like ``paste_masks``, as float32 probabilities, which are zero away from the box."""
    _comparison(convention)
    pasted = np.zeros((len(masks), height, width), np.float32)
    for index, (window, probabilities) in _samples(masks, boxes, height, width, convention):
        pasted[index][window] = probabilities
    return pasted


def paste_rles(
    masks: Masks, boxes: Boxes, height: int, width: int, threshold: float = 0.5,
    convention: Convention = "exact",
) -> RunLengthMasks:  # fmt: skip
    """Pastes masks like ``paste_masks`` into run-length codes, in the memory of a part of one mask."""
    keep = _comparison(convention)
    edges = [[np.zeros(0, int)] for _ in masks]
    for index, (window, probabilities) in _samples(masks, boxes, height, width, convention):
        edges[index].append(_edges(keep(probabilities, threshold), window, height))
    runs = [_runs(parts, height * width) for parts in edges]
    return RunLengthMasks(encode_runs(runs, height, width), height, width)


def _comparison(convention: str) -> np.ufunc:
    if convention not in ("exact", "integer"):
        raise InputError(f'unknown mask pasting convention "{convention}": it must be "exact" or "integer"')
    return np.greater_equal if convention == "exact" else np.greater


def _stretched_boxes(boxes: Boxes, cells: int, convention: str) -> Boxes:
    """Returns the real-valued boxes that the M x M masks are stretched over."""
    if convention == "exact":
        return boxes
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * ((cells + 2) / cells)
    first, last = np.trunc(centre - half), np.trunc(centre + half)  # pixels at both ends belong to the box
    # The padded mask fills these pixels, so the mask itself fills them without the rim of one cell. The rim
    # holds zeros, so nothing else distinguishes the two conventions.
    rim = (last + 1 - first) / np.float32(cells + 2)
    return np.concatenate([first + rim, last + 1 - rim], axis=1)


def _samples(
    masks: Masks, boxes: Boxes, height: int, width: int, convention: str
) -> Iterator[tuple[int, tuple[Window, Float[np.ndarray, "h w"]]]]:
    """Yields each object's index, its window in the image, half a cell beyond its box, and the probabilities
    there; large windows come in parts, from the left to the right."""
    masks = np.asarray(masks, np.float32)
    cells = masks.shape[-1]
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(axis=1, keepdims=True)
    drawn = has_area & np.isfinite(boxes).all(axis=1, keepdims=True)
    boxes = np.where(drawn, boxes, np.float32([0, 0, 1, 1]))  # an arbitrary box where nothing is drawn
    boxes = _stretched_boxes(boxes, cells, convention).astype(np.float64)
    scale = cells / (boxes[:, 2:] - boxes[:, :2])
    limits = np.array([width, height])
    first = np.clip(np.floor(boxes[:, :2] - 0.5 / scale), 0, limits).astype(int)
    last = np.clip(np.ceil(boxes[:, 2:] + 0.5 / scale), first, limits).astype(int)
    last = np.where(drawn, last, first)

    centres, indices = np.arange(max(height, width)) + 0.5, np.arange(cells)
    places = zip(boxes, scale, first, last, strict=True)
    for index, (start, per_pixel, (x1, y1), (x2, y2)) in enumerate(places):
        down = _weights(centres[y1:y2], start[1], per_pixel[1], indices)
        step = max(1, _TILE_PIXELS // max(y2 - y1, 1))
        for left in range(x1, x2, step):
            right = min(left + step, x2)
            across = _weights(centres[left:right], start[0], per_pixel[0], indices)
            yield index, ((slice(y1, y2), slice(left, right)), down @ (masks[index] @ across.T))


def _weights(
    centres: Float[np.ndarray, "p"], start: float, scale: float, indices: Int[np.ndarray, "M"]
) -> Float[np.ndarray, "p M"]:
    """Computes each cell's weight in each pixel along one axis: 1 at the cell's centre, 0 one cell away."""
    positions = (centres - start) * scale - 0.5  # cell i has its centre at position i
    weights = np.abs(positions[:, None] - indices)
    np.subtract(1.0, weights, out=weights)
    return np.maximum(weights, 0.0, out=weights).astype(np.float32)


def _edges(inside: Bool[np.ndarray, "h w"], window: Window, height: int) -> Int[np.ndarray, "E"]:
    """Returns the first pixel of each run in a window and the first after it, down the image's columns."""
    rows, columns = window
    # every column of the window starts and ends with a zero, so that its runs begin and end within it
    framed = np.zeros((inside.shape[1], inside.shape[0] + 2), bool)
    framed[:, 1:-1] = inside.T
    flat = framed.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), framed.shape[1])
    return (column + columns.start) * height + row + rows.start


def _runs(parts: list[Int[np.ndarray, "E"]], pixels: int) -> list[int]:
    """Computes the lengths of a mask's alternating runs of zeros and ones from the edges in its parts."""
    edges = np.concatenate(parts)
    # a run that reaches the bottom continues at the top of the next column: one's end is the other's start
    meets = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([meets, meets + 1]))
    if len(edges) == 0 or edges[-1] < pixels:
        edges = np.append(edges, pixels)
    return np.diff(edges, prepend=0).tolist()
