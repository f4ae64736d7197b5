"""Masks of tiles as runs of pixels of the image: their overlaps and unions."""

from collections.abc import Sequence

import numpy as np

from mrcnn_jax.run_length_masks import RunLengthMasks, decode_counts, encode_counts
from mrcnn_jax.typing import Float, Int

Runs = Int[np.ndarray, "2 R"]
"""First pixels and ends of runs of ones, each inside a column, numbered down the columns of the image."""


def runs_in_image(masks: RunLengthMasks, index: int, corner: tuple[int, int], height: int) -> Runs:
    """Returns the runs, in an image of this height, of one of the masks of a tile with this corner (x, y)."""
    side, edges = masks.shape[1], np.cumsum(decode_counts(masks.counts[index]))
    start, end = edges[: len(edges) // 2 * 2].reshape(-1, 2).T
    start, end = start[start < end], end[start < end]
    first, last = start // side, (end - 1) // side  # columns of the tile
    run = np.repeat(np.arange(len(start)), last - first + 1)
    column = np.arange(len(run)) - np.repeat(np.cumsum(last - first + 1) - (last + 1), last - first + 1)
    start, end = np.maximum(start[run], column * side), np.minimum(end[run], (column + 1) * side)
    return np.stack([start, end]) + (column + corner[0]) * height + corner[1] - column * side


def clip_runs(runs: Runs, region: Float[np.ndarray, "4"], height: int) -> Runs:
    """Returns the parts of runs inside a region (x1, y1, x2, y2) of an image of this height."""
    left, top, right, bottom = region.astype(int)
    column = runs[0] // height
    start, end = np.maximum(runs[0], column * height + top), np.minimum(runs[1], column * height + bottom)
    return np.stack([start, end])[:, (start < end) & (column >= left) & (column < right)]


def run_iou(one: Runs, other: Runs) -> float:
    """Returns the intersection over union of the pixels; 0 without any."""
    first, second = (np.diff(runs, axis=0).sum() for runs in (one, other))
    union = np.diff(unite_runs([one, other]), axis=0).sum()
    return (first + second - union) / union if union else 0.0


def unite_runs(parts: Sequence[Int[np.ndarray, "2 _r"]]) -> Int[np.ndarray, "2 U"]:
    """Returns the union of parts; its runs may continue in the next column."""
    start, end = np.sort(np.concatenate(parts, axis=1), axis=1)
    gaps = np.flatnonzero(start[1:] > end[:-1])  # as many runs have ended as have begun
    return np.stack([np.append(start[:1], start[1:][gaps]), np.append(end[:-1][gaps], end[-1:])])


def encode_runs(masks: Sequence[Int[np.ndarray, "2 _u"]], height: int, width: int) -> RunLengthMasks:
    """Encodes masks of an image that are given as ascending runs."""
    lengths = []
    for runs in masks:
        edges = runs.T.ravel()
        if len(edges) == 0 or edges[-1] < height * width:
            edges = np.append(edges, height * width)
        lengths.append(np.diff(edges, prepend=0))
    runs = np.array([len(one) for one in lengths], int)
    counts = encode_counts(np.concatenate([np.zeros(0, int), *lengths]), runs)
    return RunLengthMasks(counts, height, width)
