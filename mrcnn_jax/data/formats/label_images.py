"""Images whose pixels are numbers of objects, and their masks as compressed run-length codes."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_jax.data.image_content import extent, is_jpeg, is_png, other_size, require_plausible_size
from mrcnn_jax.data.image_io import read_file, whole_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.run_length_masks import encode_counts

MAX_VALUES = 10_000
"""Number of different values beyond which an image is no numbering of objects."""

_COUNTED = 1 << 16


def read_label_image(path: Path) -> Int[np.ndarray, "H W"]:
    """Reads the number of each pixel: a gray value of up to 32 bits, an index into a palette, or a colour.

    A colour is red * 65536 + green * 256 + blue, and 0 where it is transparent.

    Raises:
        InputError: the file is missing, damaged, or in a format that does not keep values exactly.
    """
    return decode_label_image(read_file(path), f"mask {path}")


def decode_label_image(data: bytes, name: str) -> Int[np.ndarray, "H W"]:
    """Decodes the content of a file as ``read_label_image`` does.

    Raises:
        InputError: it is damaged, or in a format that does not keep values exactly.
    """
    if is_jpeg(data):
        raise InputError(f"cannot read {name}: JPEG does not keep values exactly; masks are PNG files")
    if is_png(data):
        _, height, width, _, _ = extent(data)
        data = whole_image(data, name)
    else:
        height, width, _ = other_size(data)
    if wrong := require_plausible_size(height, width, len(data)):
        raise InputError(f"cannot read {name}: {wrong}")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return _numbers(image)
    except Exception:  # Pillow raises any kind on damaged files
        raise InputError(f"cannot read {name}: it is damaged, or no image") from None


def _numbers(image: Image.Image) -> Int[np.ndarray, "H W"]:
    if image.mode in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        return np.asarray(image).astype(np.int64)
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0].astype(np.int64)
    pixels = np.asarray(image.convert("RGBA")).astype(np.int64)
    colours = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    return np.where(pixels[..., 3] > 0, colours, 0)


def split_values(
    numbers: Int[np.ndarray, "H W"], background: tuple[int, ...] = (0,)
) -> dict[int, dict[str, Any]]:
    """Returns the mask of each value but those of the background, in the order of values.

    Raises:
        InputError: there are too many values.
    """
    if numbers.max() < _COUNTED:  # counting is faster than sorting
        found = np.flatnonzero(np.bincount(numbers.ravel()))
    else:
        found = np.unique(numbers)
    values = [value for value in found.tolist() if value not in background]
    if len(values) > MAX_VALUES:
        raise InputError(f"it has {len(values):,} different values, too many for objects")
    return _encode_values(numbers, values)


def _encode_values(numbers: Int[np.ndarray, "H W"], values: list[int]) -> dict[int, dict[str, Any]]:
    """Returns the mask of each value, from one pass over the image down its columns."""
    flat = numbers.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    order = np.argsort(flat[starts], kind="stable")  # runs of one value together, from left to right
    found, first = np.unique(flat[starts][order], return_index=True)
    runs_of = dict(zip(found.tolist(), np.split(order, first[1:]), strict=True))
    lengths = []
    for value in values:
        places = runs_of[value]
        edges = np.stack([starts[places], ends[places]], axis=1).ravel()
        alternating = np.diff(edges, prepend=0, append=flat.size)
        lengths.append(alternating if alternating[-1] else alternating[:-1])
    runs = np.array([*map(len, lengths)], int)
    codes = encode_counts(np.concatenate([np.zeros(0, int), *lengths]), runs)
    masks = [{"size": list(numbers.shape), "counts": code} for code in codes]
    return dict(zip(values, masks, strict=True))


def encode(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Returns a mask as a segmentation of COCO's: its size and compressed run-length code."""
    code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}


def place_mask(
    part: Bool[np.ndarray, "h w"], x: int, y: int, height: int, width: int
) -> Bool[np.ndarray, "H W"]:
    """Returns the mask of an image of this size with a part at a corner; what is outside is cut off."""
    mask = np.zeros((height, width), bool)
    part = part[max(-y, 0) :, max(-x, 0) :]
    y, x = max(y, 0), max(x, 0)
    part = part[: max(height - y, 0), : max(width - x, 0)]
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part
    return mask
