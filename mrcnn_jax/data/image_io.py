"""Image files: the one decoder of training, evaluation and prediction (OpenCV), and saving of pictures."""

import io
from os import PathLike

import cv2
import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8
from PIL import Image

from mrcnn_jax.errors import InputError

# decoding errors are reported by exceptions
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_image(data: bytes, name: str | PathLike, *, upright: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the content of an image file to RGB.

    Gray and palette images become RGB, an alpha channel is dropped, 16 bits are reduced to the upper 8.

    Args:
        data: the file as it is: JPEG, PNG, TIFF, BMP, WebP, GIF or another format that OpenCV reads.
        name: what error messages call it.
        upright: rotate the image as its EXIF orientation says. Data sets are read as stored, because COCO
            annotates the stored pixels; pictures that a user gives for prediction are read upright.

    Raises:
        InputError: it is of an unknown format, truncated or damaged.
    """
    return _decode(data, name, cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION))


def decode_unchanged(data: bytes, name: str | PathLike) -> Shaped[np.ndarray, "H W *C"]:
    """Decodes the content of an image file to its values as stored, in their type and number of channels.

    Raises:
        InputError: it is of an unknown format, truncated or damaged.
    """
    return _decode(data, name, cv2.IMREAD_UNCHANGED)


def read_image(path: str | PathLike, *, upright: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file; see ``decode_image``.

    Raises:
        InputError: the file is missing, or as ``decode_image``.
    """
    try:
        data = epath.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror or error}") from error
    return decode_image(data, f"image {path}", upright=upright)


def save_image(path: str | PathLike, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an RGB image in the format that the file's name asks for, making folders above it.

    Raises:
        InputError: no such format, or the file cannot be written.
    """
    try:
        place, encoded = epath.Path(path), io.BytesIO()
        Image.fromarray(image).save(encoded, Image.registered_extensions()[place.suffix.lower()])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded.getvalue())
    except KeyError:
        raise InputError(f"cannot write image {path}: unknown file extension: {place.suffix}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write image {path}: {getattr(error, 'strerror', None) or error}") from error


def require_jpeg_or_png(data: bytes, name: str | PathLike) -> None:
    """Raises InputError unless a file is a JPEG or PNG by its first bytes, as data sets require."""
    if not _is_jpeg(data) and not _is_png(data):
        raise InputError(f"{name} is not an image in JPEG or PNG format")


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8")


def _is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def _decode(data: bytes, name: str | PathLike, flags: int) -> Shaped[np.ndarray, "H W *C"]:
    # OpenCV may fill what is missing with gray. In JPEG the end marker cannot occur within pixel data.
    if _is_jpeg(data):
        complete = data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    else:
        complete = b"IEND" in data[-64:] if _is_png(data) else bool(data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if complete else None
    if image is None:
        other = "" if _is_jpeg(data) or _is_png(data) else ", or not an image of a known format"
        raise InputError(f"cannot read {name}: it is truncated or damaged{other}")
    return image
