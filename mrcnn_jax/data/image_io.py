"""Image files: the one decoder of training, evaluation and prediction (OpenCV), and saving of pictures."""

import io
import warnings
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from etils import epath
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

from mrcnn_jax.atomic_io import require_writable
from mrcnn_jax.data.image_content import (
    describe,
    extent,
    is_avif,
    is_jpeg,
    is_png,
    other_size,
    require_plausible_size,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import read_bytes, require_place

# decoding errors are reported by exceptions
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_DAMAGED = "it is truncated or damaged"


def decode_image(data: bytes, name: str | PathLike, *, upright: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes the content of an image file to RGB.

    Gray, palette and CMYK images become RGB, an alpha channel is dropped, and the first of several pages is
    taken. Of deeper images the upper 8 bits are kept: of 16, or of the 8, 10, 12 or 14 that suffice for the
    largest value. Floating-point values are those from 0 to 1, or else from 0 to 255. Data after the end of a
    JPEG or PNG is ignored.

    Args:
        data: the file as it is: JPEG, PNG, TIFF, BMP, WebP, GIF or another format that OpenCV or Pillow
            reads.
        name: what error messages call it.
        upright: rotate the image as its EXIF orientation says. Data sets are read as stored, because COCO
            annotates the stored pixels; pictures that a user gives for prediction are read upright. TIFF
            files are upright in any case.

    Raises:
        InputError: it is of an unknown format, truncated or damaged, or claims too many pixels.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    if is_jpeg(data) or is_png(data):
        data, bits = _whole(data, name)
        if bits <= 8:
            return _decode(data, name, flags)
        return to_8_bits(_decode(data, name, flags | cv2.IMREAD_ANYDEPTH), name)
    if wrong := require_plausible_size(*other_size(data)[:2], len(data)):
        raise InputError(f"cannot read {name}: {wrong}")
    if data[8:16] in (b"WEBPVP8 ", b"WEBPVP8L") and data.endswith(bytes(32)):  # a file filled up with zeros
        raise InputError(f"cannot read {name}: {_DAMAGED}")
    if upright and is_avif(data):  # OpenCV reads it as stored
        return to_8_bits(_decode_by_pillow(data, name, upright), name)
    image = _try(data, flags | cv2.IMREAD_ANYDEPTH)
    return to_8_bits(_decode_by_pillow(data, name) if image is None else image, name)


def decode_unchanged(data: bytes, name: str | PathLike) -> Shaped[np.ndarray, "H W *C"]:
    """Decodes a JPEG or PNG file to its values as stored, in their type and number of channels.

    Raises:
        InputError: it is of another format, truncated or damaged.
    """
    require_jpeg_or_png(data, name)
    return _decode(_whole(data, name)[0], name, cv2.IMREAD_UNCHANGED)


def read_image(path: str | PathLike, *, upright: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file; see ``decode_image``.

    Raises:
        InputError: the file is missing, or as ``decode_image``.
    """
    return decode_image(read_file(path), f"image {path}", upright=upright)


def read_file(path: str | PathLike) -> bytes:
    """Returns the content of an image file.

    Raises:
        InputError: it cannot be read, or is a pipe, a device or an address.
    """
    require_place(path, "image")
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise InputError(f"cannot read image {path}: {getattr(error, 'strerror', None) or error}") from error


def used_bits(largest: int) -> int:
    """Returns the depth of samples of 16 bits whose largest value is given: 8, 10, 12, 14 or 16 bits."""
    return next(bits for bits in (8, 10, 12, 14, 16) if largest < 1 << bits)


def to_8_bits(image: Shaped[np.ndarray, "H W 3"], name: str | PathLike) -> UInt8[np.ndarray, "H W 3"]:
    """Reduces samples of any type to 8 bits; see ``decode_image``.

    Raises:
        InputError: values are negative, not finite, or beyond 65,535.
    """
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and high <= 65535):
        found = f"its values reach from {low:g} to {high:g}"
        raise InputError(f"cannot read {name}: {found}: save it with 8 bits")
    if image.dtype.kind == "f" and high <= 255:
        return np.round(image * (255 if high <= 1 else 1)).astype(np.uint8)
    return (image.astype(np.uint16, copy=False) >> (used_bits(int(high)) - 8)).astype(np.uint8)


def pillow_samples(image: Image.Image) -> Shaped[np.ndarray, "H W 3"]:
    """Returns a Pillow image as RGB, of 8 bits unless its samples are deeper: see ``to_8_bits``."""
    if image.mode[0] in "IF":
        return np.repeat(np.asarray(image)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


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


def require_picture_path(path: str | PathLike) -> None:
    """Raises InputError if ``save_image`` could not write to a path; leaves nothing there."""
    require_place(path, "the picture")
    place = epath.Path(path)
    if place.is_dir():
        raise InputError(f"cannot write image {path}: it is a folder")
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), Image.registered_extensions()[place.suffix.lower()])
    except (KeyError, OSError, ValueError):
        given = f"unknown file extension: {place.suffix}" if place.suffix else "its name has no extension"
        raise InputError(f"cannot write image {path}: {given} (e.g. .png or .jpg)") from None
    if "://" not in str(path):
        require_writable(Path(path).absolute().parent)


def require_jpeg_or_png(data: bytes, name: str | PathLike) -> None:
    """Raises InputError unless a file is a JPEG or PNG by its first bytes, as data sets require."""
    if not is_jpeg(data) and not is_png(data):
        raise InputError(f"{name} is not an image in JPEG or PNG format")


def whole_image(data: bytes, name: str | PathLike) -> bytes:
    """Returns a JPEG or PNG file without what follows the image, and with its end marker.

    Raises:
        InputError: it is truncated or damaged, or claims too many pixels.
    """
    return _whole(data, name)[0]


def _whole(data: bytes, name: str | PathLike) -> tuple[bytes, int]:
    """Returns the image within a JPEG or PNG file, and the depth of its samples."""
    end, height, width, bits, scans = extent(data)
    if wrong := require_plausible_size(height, width, len(data)):
        raise InputError(f"cannot read {name}: {wrong}")
    if end is None:
        if not (is_jpeg(data) and scans == 1 and (completed := _complete(data))):
            raise InputError(f"cannot read {name}: {_DAMAGED}")
        return completed, bits
    return (data if end == len(data) else data[:end]), bits


def _complete(data: bytes) -> bytes | None:
    """Returns a JPEG of one scan with the end marker that it lacks; None if pixels are missing, too.

    Pixels are missing if the decoder reads on: then other data before the marker gives other pixels.
    """
    stripped = data.rstrip(b"\0")
    stripped += b"\0" * stripped.endswith(b"\xff")
    completed = stripped + b"\xff\xd9"
    try:  # Pillow, because OpenCV prints libjpeg's warnings
        with warnings.catch_warnings(action="ignore"):
            ends = (b"\xff\xd9", b"\x5a\xa5\x3c" * 8 + b"\xff\xd9")
            decoded = [np.asarray(Image.open(io.BytesIO(stripped + end))) for end in ends]
    except Exception:  # Pillow raises any kind on damaged files
        return None
    return completed if np.array_equal(*decoded) else None


def _decode(data: bytes, name: str | PathLike, flags: int) -> Shaped[np.ndarray, "H W *C"]:
    image = _try(data, flags)
    if image is None:
        raise InputError(f"cannot read {name}: {_DAMAGED}")
    return image


def _try(data: bytes, flags: int) -> Shaped[np.ndarray, "H W *C"] | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except (cv2.error, MemoryError):
        return None


def _decode_by_pillow(
    data: bytes, name: str | PathLike, upright: bool = False
) -> Shaped[np.ndarray, "H W 3"]:
    """Decodes formats that OpenCV lacks, and samples of types that it does not convert to RGB."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return pillow_samples(ImageOps.exif_transpose(image) if upright else image)
    except Image.UnidentifiedImageError:
        raise InputError(f"cannot read {name}: {describe(data)}") from None
    except Exception:  # Pillow's readers of rare formats raise any kind on damaged files
        raise InputError(f"cannot read {name}: {_DAMAGED}") from None
