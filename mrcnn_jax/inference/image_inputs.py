"""Images as callers hold them: arrays, Pillow images, files and folders."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mrcnn_jax.data.image_files import find_image_files, is_pattern
from mrcnn_jax.data.image_io import pillow_samples, read_image, to_8_bits
from mrcnn_jax.data.rgb_arrays import require_rgb
from mrcnn_jax.errors import InputError
from mrcnn_jax.typing import UInt8

ImageLike = np.ndarray | Image.Image | str | os.PathLike
"""One image: a uint8 RGB array [H, W, 3], a Pillow image, or a file."""


def is_one_image(images: Any) -> bool:
    """Tests for one image, as opposed to a folder, a pattern or an iterable of images."""
    if isinstance(images, str | os.PathLike):
        return not Path(images).is_dir() and not is_pattern(images)
    single = isinstance(images, bytes | bytearray | memoryview | Mapping) or hasattr(images, "read")
    return single or hasattr(images, "__array__") or not isinstance(images, Iterable)


def list_images(images: Any) -> Iterator[ImageLike]:
    """Returns an iterator over the images of an iterable, or over the image files of a folder or a pattern.

    Files are in alphabetical order (``find_image_files``). The path of one file is like a list of it.

    Raises:
        InputError: at once, for a folder without image files, or for one array or Pillow image in place of
            many.
    """
    if isinstance(images, str | os.PathLike):
        return iter(find_image_files([images]).files)
    array = hasattr(images, "__array__")
    if not (np.ndim(images) in (0, 2, 3) if array else is_one_image(images)):
        return iter(images)
    given = type(images).__name__
    raise InputError(f"many images must be a folder or a list of images, not {given}: pass one as [image]")


def to_rgb(image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image as an array; files and Pillow images are turned upright as their EXIF data say.

    Raises:
        InputError: a file cannot be read, or an array or a Pillow image has no levels from 0 to 255.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, upright=True)
    return require_rgb(_from_pillow(image) if isinstance(image, Image.Image) else image)


def _from_pillow(image: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    name = getattr(image, "filename", "") or "an image"
    try:
        samples = pillow_samples(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes a file when its pixels are read
        raise InputError(f"Pillow cannot decode {name}: {error}") from error
    return to_8_bits(samples, name) if samples.size else samples.astype(np.uint8)
