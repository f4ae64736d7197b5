"""How large an image becomes and how its pixels are resampled, by the rules of the libraries whose weights may be in use. On the host."""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

Method = Literal["area", "antialiased", "bilinear"]
Rounding = Literal["nearest", "down"]


def resized_size(height: int, width: int, short_edge: int, long_edge: int, rounding: Rounding = "nearest") -> tuple[int, int]:
    """Height and width with the shorter edge at ``short_edge``, or less where the longer one would pass ``long_edge``.

    ``rounding``: "nearest" is Detectron2's rule (halves up), "down" torchvision's; neither ever gives less than one pixel.
    """
    scale = min(short_edge / min(height, width), long_edge / max(height, width))
    half = 0.5 if rounding == "nearest" else 0.0
    return max(1, int(height * scale + half)), max(1, int(width * scale + half))


def resize(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int, method: Method = "area", out: np.ndarray | None = None
) -> UInt8[np.ndarray, "{height} {width} 3"] | Float[np.ndarray, "{height} {width} 3"]:
    """The image at another size; pixel centres stay where they are, and the border goes on outside.

    Args:
        method: "area" averages over whole pixels where the image shrinks and is bilinear where it grows (OpenCV).
            "antialiased" is bilinear with a filter that widens as the image shrinks, in whole levels (Pillow; Detectron2's ResizeTransform).
            "bilinear" reads four pixels whatever the scale and gives float32 levels, not rounded (torch's interpolate; torchvision).
        out: where the result is written, of its size and type; it may be part of a larger image.
    """
    if method == "antialiased":
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        if out is None:
            return resized
        out[:] = resized
        return out
    if method == "bilinear":
        return cv2.resize(image.astype(np.float32, order="C"), (width, height), out, interpolation=cv2.INTER_LINEAR)
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
