"""COCO's compressed run-length masks, read where they are needed instead of written out pixel by pixel."""

import numpy as np
from jaxtyping import Float, Int, UInt8


def run_lengths(counts: str) -> Int[np.ndarray, "n"]:
    """How many pixels are 0, then 1, then 0, ..., column by column, in a mask's compressed counts.

    A number is written in digits of five bits, lowest first, as characters from "0" on. A sixth bit says that another digit follows; the highest bit of
    the last one is the sign. The fourth number and those behind it are differences from the last but one.
    """
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(digits < 32)
    length = np.diff(last, prepend=-1)
    first = last - length + 1
    place = np.arange(len(digits)) - np.repeat(first, length)
    numbers = np.add.reduceat((digits & 31) << 5 * place, first)
    numbers -= (digits[last] >> 4 & 1) << 5 * length
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def crop_mask(counts: str, height: int, width: int, box: Float[np.ndarray, "4"], size: int) -> UInt8[np.ndarray, "size size"]:
    """A mask inside its box, read at the centres of size x size cells (nearest pixel; 0 outside the image).

    ``counts``: of the mask of the whole image of ``height`` and ``width``; an empty text, an object without a mask, gives zeros.
    """
    steps = (np.arange(size) + 0.5) / size
    x = np.floor(box[0] + steps * (box[2] - box[0])).astype(np.int64)
    y = np.floor(box[1] + steps * (box[3] - box[1])).astype(np.int64)
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    columns, of_x = np.unique(x.clip(0, width - 1), return_inverse=True)
    rows, of_y = np.unique(y.clip(0, height - 1), return_inverse=True)
    pixels = (columns[:, None] * height + rows).ravel()  # counted as the runs are, and ascending
    changes = np.searchsorted(pixels, np.cumsum(run_lengths(counts)) if counts else [])
    values = np.cumsum(np.bincount(changes, minlength=len(pixels) + 1)[:-1]) & 1
    crop = values.astype(np.uint8).reshape(len(columns), len(rows)).take(of_x, axis=0).take(of_y, axis=1)
    return crop.T * inside
