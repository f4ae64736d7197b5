"""Sizes of resized images and resampling of their pixels, by the rules of several libraries."""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

Method = Literal["area", "antialiased", "bilinear"]
Rounding = Literal["nearest", "down"]


def resized_size(
    height: int, width: int, short_edge: int, long_edge: int, rounding: Rounding = "nearest"
) -> tuple[int, int]:
    """Returns height and width with the shorter edge at ``short_edge``, or less to keep to ``long_edge``.

    Args:
        rounding: "nearest" is Detectron2's rule (halves up), "down" torchvision's; neither gives less than
            1 pixel.
    """
    (size,) = resized_sizes(np.array([[height, width]]), short_edge, long_edge, rounding).tolist()
    return size[0], size[1]


def resized_sizes(
    sizes: Int[np.ndarray, "N 2"], short_edge: int, long_edge: int, rounding: Rounding = "nearest"
) -> Int[np.ndarray, "N 2"]:
    """Returns ``resized_size`` of many heights and widths at once."""
    scale = np.minimum(short_edge / sizes.min(axis=1), long_edge / sizes.max(axis=1))
    half = 0.5 if rounding == "nearest" else 0.0
    return np.maximum(1, (sizes * scale[:, None] + half).astype(int))


def resize(
    image: UInt8[np.ndarray, "h w 3"],
    height: int,
    width: int,
    method: Method = "area",
    out: np.ndarray | None = None,
) -> UInt8[np.ndarray, "{height} {width} 3"] | Float[np.ndarray, "{height} {width} 3"]:
    """Resizes an image; pixel centres are at half-integers, and border pixels are repeated outside.

    Args:
        method: "area" averages over pixels if the image shrinks and is bilinear if it grows (OpenCV).
            "antialiased" is bilinear with a filter that widens as the image shrinks, rounded to whole
            levels (Pillow; Detectron2's ResizeTransform). "bilinear" reads four pixels at any scale and
            gives float32 levels, not rounded (torch's interpolate; torchvision).
        out: array of the result's size and type to write to; it may be part of a larger image.
    """
    if method == "antialiased":
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        if out is None:
            return resized
        out[:] = resized
        return out
    if method == "bilinear":
        image = image.astype(np.float32, order="C")
    shrinks = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if method == "area" and shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), out, interpolation=interpolation)
