"""Images as callers hold them: arrays, Pillow images, files and folders."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.typing import UInt8

ImageLike = np.ndarray | Image.Image | str | os.PathLike
"""One image: a uint8 RGB array [H, W, 3], a Pillow image, or a file."""
PILLOW_MODES = frozenset("1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB".split())
"""Modes of Pillow with levels of at most 8 bits."""


def is_one_image(images: Any) -> bool:
    """Tests for one image, as opposed to a folder or an iterable of images."""
    if isinstance(images, str | os.PathLike):
        return not Path(images).is_dir()
    return hasattr(images, "__array__") or not isinstance(images, Iterable)


def list_images(images: Iterable[ImageLike] | str | os.PathLike) -> Iterator[ImageLike]:
    """Yields the image files in and below a folder in alphabetical order, or the images of an iterable.

    Raises:
        InputError: a folder has no image files.
    """
    yield from find_image_files([images]).files if isinstance(images, str | os.PathLike) else images


def to_rgb(image: ImageLike) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image as an array; files and Pillow images are turned upright as their EXIF data say.

    Raises:
        InputError: a file cannot be read, or an array or a Pillow image has no levels from 0 to 255.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, upright=True)
    if isinstance(image, Image.Image) and image.mode in PILLOW_MODES:
        try:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow decodes a file when its pixels are read
            name = getattr(image, "filename", "") or "an image"
            raise InputError(f"Pillow cannot decode {name}: {error}") from error
    image = np.asarray(image)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    hints = {
        "pass the images of a batch as a list": image.ndim == 4,
        "repeat the channel of a gray image": image.ndim == 2 or image.shape[2:] == (1,),
        "drop the alpha channel": image.ndim == 3 and image.shape[2] == 4,
        "move the channels last": image.ndim == 3 and image.shape[0] in (1, 3, 4),
        "levels are 0 to 255": image.dtype != np.uint8 and image.dtype.kind in "biuf",
    }
    hint = next((f" ({hint})" for hint, applies in hints.items() if applies), "")
    given = f"{image.dtype} of shape {list(image.shape)}"
    raise InputError(f"an image must be uint8 RGB of shape [H, W, 3], not {given}{hint}")
