"""Masks of an image as run-length codes, which behave like an array of full-size masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from mrcnn_jax.typing import Bool, Int, UInt8

Window = tuple[slice, slice]
"""Rows and columns of an image."""
_CODES = 4096  # that are measured at once
_LONGEST = 2**34  # more than any run, and little enough that sums of runs fit into 64 bits
_LIMITS = 2 ** np.arange(4, 60, 5)  # from which a number needs one more digit to base 32


class RunLengthMasks(NDArrayOperatorsMixin):
    """D masks of one image in COCO's compressed run-length code; a full-size mask is decoded when it is read.

    An integer index, and iteration, decode one mask, bool [H, W]; slices, index arrays and boolean masks give
    ``RunLengthMasks``. Everything else that an array of shape [D, H, W] can do decodes all masks at once.

    Attributes:
        counts: code of each mask; "" is a mask without pixels.
        shape: D, H, W.
    """

    dtype, ndim = np.dtype(bool), 3

    def __init__(self, counts: Sequence[str], height: int, width: int):
        self.counts, self.shape = tuple(counts), (len(counts), int(height), int(width))

    @staticmethod
    def of(masks: "Masks") -> "RunLengthMasks":
        """Returns the codes of full-size masks; codes as they are."""
        if isinstance(masks, RunLengthMasks):
            return masks
        return RunLengthMasks([_encode_mask(mask) for mask in masks], *masks.shape[1:])

    def crop(self, index: int) -> tuple[Window, Bool[np.ndarray, "h w"]]:
        """Decodes the part of a mask that holds all its pixels; returns its window in the image, and it."""
        height = self.shape[1]
        edges = np.cumsum(decode_counts(self.counts[index]))
        runs = edges[: len(edges) // 2 * 2].reshape(-1, 2)  # first pixel and end, down the columns
        runs = runs[runs[:, 0] < runs[:, 1]]
        if not len(runs):
            return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), bool)
        columns, rows = np.divmod(runs - [0, 1], height)
        left, right = int(columns[0, 0]), int(columns[-1, 1]) + 1
        wraps = (columns[:, 0] != columns[:, 1]).any()
        top, bottom = (0, height) if wraps else (int(rows[:, 0].min()), int(rows[:, 1].max()) + 1)
        lengths = np.diff(runs.ravel(), prepend=left * height, append=right * height)
        pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(right - left, height)
        return (slice(top, bottom), slice(left, right)), np.ascontiguousarray(pixels[:, top:bottom].T)

    @property
    def areas(self) -> Int[np.ndarray, "D"]:
        """The number of pixels of each mask."""
        return np.array([decode_counts(counts)[1::2].sum() for counts in self.counts], int)

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index):
        if isinstance(index, tuple):
            return np.asarray(self)[index]
        chosen = np.arange(len(self))[index]
        if np.ndim(chosen):
            return RunLengthMasks([self.counts[position] for position in chosen], *self.shape[1:])
        return np.asarray(self[[chosen]])[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        decoded = np.zeros(self.shape, bool)
        for index, mask in enumerate(decoded):
            window, mask[window] = self.crop(index)
        return decoded if dtype is None else decoded.astype(dtype)

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        arrays = [np.asarray(each) if isinstance(each, RunLengthMasks) else each for each in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str):
        if name.startswith("_"):  # what copying, pickling and NumPy look for
            raise AttributeError(name)
        return getattr(np.asarray(self), name)


Masks = Bool[np.ndarray, "D H W"] | RunLengthMasks
"""Full-size masks of D objects of an image, or their run-length codes, which behave alike."""


def encode_masks(masks: Masks) -> list[dict[str, Any]]:
    """Returns masks as COCO's compressed run-length codes, {"size": [H, W], "counts": text}."""
    return [{"size": list(masks.shape[1:]), "counts": code} for code in RunLengthMasks.of(masks).counts]


def _encode_mask(mask: Bool[np.ndarray, "H W"]) -> str:
    framed = np.concatenate([[False], mask.T.ravel()])  # a code begins with a run of zeros, perhaps of none
    edges = np.flatnonzero(framed[1:] != framed[:-1])
    lengths = np.diff(edges, prepend=0, append=mask.size)
    return encode_counts(lengths, np.array([len(lengths)]))[0]


def decode_counts(text: str | bytes) -> Int[np.ndarray, "R"]:
    """Returns the lengths of alternating runs of zeros and ones (pycocotools' rleFrString)."""
    data = text.encode("ascii") if isinstance(text, str) else text
    digits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(digits & 0x20 == 0)  # of each number's digits to base 32, the lowest first
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((digits & 0x1F) << (5 * place), first) if len(last) else last
    numbers -= np.where(digits[last] & 0x10, 1 << (5 * (last - first + 1)), 0)  # the top bit is a sign
    numbers[1::2] = np.cumsum(numbers[1::2])  # all but the first three are differences to the one before last
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def encode_counts(lengths: Int[np.ndarray, "R"], runs: Int[np.ndarray, "D"]) -> list[str]:
    """Compresses run lengths of masks, one after the other (pycocotools' rleToString).

    Args:
        lengths: of alternating runs of zeros and ones, down the columns of an image.
        runs: number of runs of each mask.
    """
    first = np.cumsum(runs) - runs
    place = np.arange(len(lengths)) - np.repeat(first, runs)
    numbers = lengths.astype(np.int64)
    # all but the first three are differences to the one before last
    numbers[2:] -= np.where(place[2:] > 2, lengths[:-2], 0)
    digits = 1 + np.searchsorted(_LIMITS, np.where(numbers < 0, ~numbers, numbers), side="right")
    begins = np.cumsum(digits) - digits
    codes = np.empty(digits.sum(), np.uint8)
    for digit in range(digits.max(initial=0)):
        has = digits > digit
        more = digits[has] > digit + 1
        codes[begins[has] + digit] = 48 + ((numbers[has] >> 5 * digit) & 0x1F) + 0x20 * more
    text = codes.tobytes().decode("ascii")
    stops = np.cumsum(digits)[first + runs - 1].tolist()
    return [text[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def measure_counts(codes: Sequence[str]) -> tuple[Int[np.ndarray, "D"], Int[np.ndarray, "D"]] | None:
    """Measures compressed codes, many at once.

    Returns:
        The pixels of each image, and of each mask; None if any code is malformed.
    """
    pixels, areas = np.zeros((2, len(codes)), np.int64)
    for start in range(0, len(codes), _CODES):
        part = slice(start, start + _CODES)
        lengths = np.fromiter(map(len, codes[part]), int)
        text = "".join(codes[part])
        if not lengths.all() or not text.isascii():
            return None
        digits, ends = np.frombuffer(text.encode(), np.uint8) - 48, np.cumsum(lengths)
        last = np.flatnonzero(digits & 32 == 0)  # of each number's digits
        widths = np.diff(last, prepend=-1)
        # characters below 48 wrap around
        if digits.max() >= 64 or (digits[ends - 1] & 32).any() or widths.max() > 7:  # more than 35 bits
            return None
        runs = np.searchsorted(last, ends) - np.searchsorted(last, ends - lengths)
        sums = _sum_runs(_join_digits(digits, last, widths), runs)
        if sums is None:
            return None
        pixels[part], areas[part] = sums
    return pixels, areas


def _join_digits(
    digits: UInt8[np.ndarray, "n"], last: Int[np.ndarray, "R"], widths: Int[np.ndarray, "R"]
) -> Int[np.ndarray, "R"]:
    """Computes signed numbers from their digits to base 32, the lowest first."""
    numbers = digits[last].astype(np.int64) & 0x1F
    numbers -= (numbers & 0x10) << 1  # the top bit is a sign
    for place in range(1, widths.max()):
        longer = np.flatnonzero(widths > place)
        numbers[longer] = numbers[longer] << 5 | digits[last[longer] - place] & 0x1F
    return numbers


def _sum_runs(
    numbers: Int[np.ndarray, "R"], runs: Int[np.ndarray, "D"]
) -> tuple[Int[np.ndarray, "D"], Int[np.ndarray, "D"]] | None:
    """Sums all runs of each code, and its runs of ones; None if one is negative or longer than any mask."""
    first = np.cumsum(runs) - runs
    place = np.arange(len(numbers)) - np.repeat(first, runs)
    odd = place % 2 == 1
    total = numbers[first]
    for chosen, counts in ((~odd & (place > 0), (runs - 1) // 2), (odd, runs // 2)):
        # differences to the run before the last, but for the first of each code
        begins, chain = np.cumsum(counts) - counts, np.cumsum(numbers[chosen])
        chain -= np.repeat(np.append(0, chain)[begins], counts)
        if chain.min(initial=0) < 0 or chain.max(initial=0) > _LONGEST:
            return None
        sums = np.append(0, np.cumsum(chain))
        ones = sums[begins + counts] - sums[begins]
        total = total + ones
    return None if numbers[first].min() < 0 else (total, ones)
