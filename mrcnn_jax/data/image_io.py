"""The pixels of an image file, or the sentence that says why there are none."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped

from mrcnn_jax.errors import InputError

AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def decode(path: Path, data: bytes, flags: int = AS_STORED) -> Shaped[np.ndarray, "H W *channels"]:
    """Decodes a whole JPEG or PNG file, by default to uint8 BGR as stored: an EXIF rotation is not applied, here or
    when the images are used.

    Args:
        path: what to call it.
        data: its content.
        flags: OpenCV's, for another form.

    Raises:
        InputError: it is of another format, truncated or damaged.
    """
    jpeg, png = data.startswith(b"\xff\xd8"), data.startswith(b"\x89PNG\r\n\x1a\n")
    if not jpeg and not png:
        raise InputError(f"{path} is not an image in JPEG or PNG format.")
    # A decoder may fill what is missing with gray without a word. In JPEG the end marker cannot occur in pixel data.
    complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") if jpeg else b"IEND" in data[-64:]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if complete else None
    if image is None:
        raise InputError(f"{path} is truncated or damaged: it cannot be decoded.")
    return image
