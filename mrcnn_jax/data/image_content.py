"""Content of image files before it is decoded: where the image ends, its size, and what other files are."""

import io
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

MAX_PIXELS = 2**30
"""Largest number of pixels of an image, OpenCV's own limit."""
_PLAUSIBLE = 2**26, 4096  # pixels that any file may claim; beyond, the pixels for each byte of the file

_PNG_START = b"\x89PNG\r\n\x1a\n"
_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed by gzip",
    b"{": "text, perhaps JSON",
    b"<svg": "a vector drawing (SVG)",
    b"<": "a web page or XML",
    b"II\x1a\0\0\0HEAPCCDR": "a camera's raw file: convert it to JPEG or PNG",
    b"DICM": "a DICOM file: convert it to PNG",
}  # fmt: skip
"""Other files that are found in place of images, by their first bytes."""


class Extent(NamedTuple):
    """Extent of a JPEG or PNG image within a file."""

    end: int | None  # offset of the first byte after the image; None if its end is missing
    height: int  # 0 if the header is missing
    width: int
    bits: int  # for a sample
    scans: int = 1  # of a JPEG, up to the end


def is_jpeg(data: bytes) -> bool:
    """Returns whether a file begins like a JPEG."""
    return data.startswith(b"\xff\xd8")


def is_avif(data: bytes) -> bool:
    """Returns whether a file begins like an AVIF image."""
    return data[4:12] in (b"ftypavif", b"ftypavis")


def is_png(data: bytes) -> bool:
    """Returns whether a file begins like a PNG."""
    return data.startswith(_PNG_START)


def extent(data: bytes) -> Extent:
    """Returns the extent of a JPEG or PNG image by its markers or chunks; the pixels are not decoded."""
    return _jpeg_extent(data) if is_jpeg(data) else _png_extent(data)


def _jpeg_extent(data: bytes) -> Extent:
    position, height, width, bits, scans, markers = 2, 0, 0, 8, 0, None
    while (position := data.find(b"\xff", position)) >= 0 and position + 4 <= len(data) + 2:
        marker = data[position + 1] if position + 1 < len(data) else 0
        if marker == 0xD9:
            return Extent(position + 2, height, width, bits, scans)
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # fill bytes, and markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        is_frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if is_frame and not width:  # the first is what decoders allocate memory for
            bits, frame = (data[position + 4 : position + 5] or b"\x08")[0], data[position + 5 : position + 9]
            height, width = int.from_bytes(frame[:2], "big"), int.from_bytes(frame[2:], "big")
        position += 2 + length
        if marker == 0xDA:
            scans += 1
            markers = _markers_in_scan(data, position) if markers is None else markers
            following = markers[np.searchsorted(markers, position) :]
            if not following.size:
                break
            position = int(following[0])
    return Extent(None, height, width, bits, scans)


def _markers_in_scan(data: bytes, start: int) -> Int[np.ndarray, "n"]:
    """Returns where markers are that end pixel data, which has 0 or a restart marker after each byte 255."""
    array = np.frombuffer(data, np.uint8)
    places = start + np.flatnonzero(array[start:-1] == 0xFF)
    following = array[places + 1]
    return places[(following != 0) & (following != 0xFF) & ((following < 0xD0) | (following > 0xD7))]


def _png_extent(data: bytes) -> Extent:
    position = len(_PNG_START)
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    bits = data[24] if len(data) > 24 else 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        position += 12 + length
        if kind == b"IEND":
            return Extent(position if position <= len(data) else None, height, width, bits)
    return Extent(None, height, width, bits)


def other_size(data: bytes) -> tuple[int, int, int]:
    """Returns height, width and pages of an image in another format; zeros if Pillow cannot tell."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            return image.height, image.width, getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        return 1, int(count[0]) if count else MAX_PIXELS + 1, 1
    except Exception:  # Pillow's readers of rare formats raise any kind on damaged files
        return 0, 0, 0


def require_plausible_size(height: int, width: int, length: int) -> str | None:
    """Returns what is wrong with the size in a header of a file of ``length`` bytes, or None."""
    pixels, (always, each_byte) = height * width, _PLAUSIBLE
    size = f"{width}x{height} (width x height)"
    if pixels > MAX_PIXELS:
        return f"it claims to be {size}, but images may have {MAX_PIXELS:,} pixels at most"
    if pixels > max(always, each_byte * length):
        return f"it claims to be {size}, which cannot be in {length:,} bytes: it is truncated or damaged"
    return None


def describe(data: bytes) -> str:
    """Returns what a file is that is no image of a known format."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not data:
        return "it is empty"
    if not data.strip(b"\0"):
        return "it holds nothing but zeros"
    if data[4:8] == b"ftyp":
        photo = data[8:12] in (b"heic", b"heix", b"mif1", b"heim", b"heis", b"hevc", b"msf1")
        return f"it is {'an HEIC photo: convert it to JPEG' if photo else 'a video'}"
    if data[128:132] == b"DICM":
        return f"it is {_KINDS[b'DICM']}"
    kind = next((kind for first, kind in _KINDS.items() if start.lower().startswith(first.lower())), None)
    return f"it is {kind}" if kind else "it is truncated or damaged, or not an image of a known format"


def upright_size(path: Path) -> tuple[int, int] | None:
    """Returns height and width of an image as its EXIF orientation shows it; None if its header is bad.

    Of a TIFF file Pillow returns the upright size by itself.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            turned = image.format != "TIFF" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception:  # Pillow's readers of rare formats raise any kind on damaged files
        return None
