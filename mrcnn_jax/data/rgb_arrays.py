"""Checks of arrays that are given as RGB images."""

from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.typing import UInt8


def require_rgb(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image as an array of NumPy.

    Raises:
        InputError: it is no array, or one of another type or shape; the message says what to change.
    """
    image = _to_array(image)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    if not image.size:
        raise InputError(f"an image must have pixels, not the shape {list(image.shape)}")
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


def _to_array(image: Any) -> np.ndarray:
    try:
        array = np.asarray(image)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "biufc":
        given = type(image).__name__
        raise InputError(f"an image must be a uint8 array, a Pillow image or a file's path, not {given}")
    return array
