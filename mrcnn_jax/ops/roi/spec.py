"""Static description of a RoI operation, and the checks of its arguments."""

from numbers import Integral
from typing import NamedTuple

import numpy as np

OPERATIONS = ("align", "pool", "warp")


class PoolSpec(NamedTuple):
    """Static description of a RoI operation.

    Attributes:
        reduction: "average" of samples, "max" of samples, or "cells": the maximum of whole cells.
        output_size: bins along y and x.
        sampling_ratio: samples of a bin along each axis; 0 takes as many as the RoI needs. Unused for cells.
        half_pixel: the value of cell i lies at i + 0.5; otherwise at i, and RoIs are at least one cell
            wide (see ``roi_align``). Unused for cells.
        round_boxes: whether boxes are first rounded to whole cells, as by RoIWarp.
        box_gradient: whether the gradient of rounded boxes passes straight through the rounding.
        groups: position-sensitive maps along each side: bin p of P reads map p * groups // P.
        whole_cells: whether an average is of all cells that a bin touches, instead of samples.
        unread_cells: last rows and columns of the map that bins of whole cells leave out.
    """

    reduction: str
    output_size: tuple[int, int]
    sampling_ratio: int = 0
    half_pixel: bool = False
    round_boxes: bool = False
    box_gradient: bool = False
    groups: int = 1
    whole_cells: bool = False
    unread_cells: int = 0

    @property
    def is_fixed(self) -> bool:
        """Returns whether every bin has the same number of samples, whatever its RoI."""
        return self.sampling_ratio > 0

    def channels(self, maps: int) -> int:
        """Returns the channels of a pooled RoI, of maps with ``maps`` channels."""
        return maps // self.groups**2


def make_spec(
    operation: str, reduction: str, sampling_ratio: int, half_pixel: bool, output_size: int | tuple[int, int],
    box_gradient: bool = False,
) -> PoolSpec:  # fmt: skip
    """Builds the description of an operation from the arguments of ``pool_rois``.

    Raises:
        ValueError: for an unknown operation or reduction, a negative sampling ratio, or bins that are not
            positive.
    """
    bins = tuple(output_size) if np.iterable(output_size) else (output_size, output_size)
    if len(bins) != 2 or not all(isinstance(side, Integral) and side > 0 for side in bins):
        raise ValueError(f"output_size must be one or two positive numbers, not {output_size}")
    bins = int(bins[0]), int(bins[1])  # of NumPy too
    if operation not in OPERATIONS:
        raise ValueError(f'operation must be "align", "pool" or "warp", not {operation!r}')
    if operation == "pool":
        if reduction != "max":
            raise ValueError(f'reduction of RoIPool must be "max", not {reduction!r}')
        return PoolSpec("cells", bins)
    if reduction not in ("average", "max"):
        raise ValueError(f'reduction must be "average" or "max", not {reduction!r}')
    if not isinstance(sampling_ratio, Integral) or sampling_ratio < 0:
        allowed = "0 (adaptive) or a positive whole number"
        raise ValueError(f"sampling_ratio must be {allowed}, not {sampling_ratio}")
    is_warp = operation == "warp"
    half_pixel, box_gradient = half_pixel and not is_warp, box_gradient and is_warp
    return PoolSpec(reduction, bins, sampling_ratio, half_pixel, is_warp, box_gradient)
