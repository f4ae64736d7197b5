"""Preprocessing of images on the host: decode, resize, pad."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.data.dataset import Record
from mrcnn_jax.data.image_io import decode_image
from mrcnn_jax.data.resize import resize, resized_size

STRIDE = 32
"""Sides of padded images are multiples of this, the coarsest stride that the pyramid halves exactly."""


def decode_record(record: Record) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a stored image to RGB; InputError names it."""
    name = f"image {record.image_id} ({record.file_name})"
    return decode_image(record.image, name, upright=record.upright)


def is_portrait(sizes: Int[np.ndarray, "N 2"]) -> Bool[np.ndarray, "N"]:
    """Returns which images are higher than wide; square ones count as landscape."""
    return sizes[:, 0] > sizes[:, 1]


def padded_size(config: DataConfig, portrait: bool) -> tuple[int, int]:
    """Returns height and width of padded training images: one size for landscape and one for portrait."""
    edges = max(*config.short_edge, config.short_edge_test), config.long_edge
    short, long = (_round_up(edge, STRIDE) for edge in edges)
    return (long, short) if portrait else (short, long)


def inference_sizes(
    height: int, width: int, config: DataConfig, conventions: Conventions = OURS
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the resized and the padded height and width of an image at inference."""
    size = resized_size(height, width, config.short_edge_test, config.long_edge, conventions.size_rounding)
    if not config.padding_divisor:
        return size, padded_size(config, height > width)
    return size, tuple(_round_up(side, config.padding_divisor) for side in size)


def image_type(conventions: Conventions) -> type[np.uint8] | type[np.float32]:
    """Returns the type of padded images: float32 if resizing does not round to whole levels."""
    return np.float32 if conventions.resize == "bilinear" else np.uint8


def resize_and_pad(
    image: UInt8[np.ndarray, "h w 3"],
    size: tuple[int, int],
    padded: tuple[int, int],
    conventions: Conventions = OURS,
) -> UInt8[np.ndarray, "H W 3"] | Float[np.ndarray, "H W 3"]:
    """Resizes an image into the upper left corner of a padded one; levels are 0 to 255 in either type."""
    canvas = np.zeros((*padded, 3), image_type(conventions))
    resize(image, *size, conventions.resize, out=canvas[: size[0], : size[1]])
    return canvas


def _round_up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
