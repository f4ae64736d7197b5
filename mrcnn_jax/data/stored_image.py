"""Images as prepared data sets store them: the JPEG or PNG file, or a PNG made from another format."""

import os
from typing import Literal, NamedTuple

import cv2
import numpy as np

from mrcnn_jax.data.image_content import extent, is_avif, is_jpeg, is_png, other_size
from mrcnn_jax.data.image_io import decode_image, read_file, used_bits, whole_image
from mrcnn_jax.errors import InputError

Rotation = Literal["auto", "stored", "upright"]
"""Frame of the annotations of photos with an EXIF orientation: stored pixels, the upright picture, or "auto",
which takes the one that has the annotated size."""


_PAGES = "of several pages or frames, of which the first is used"


class StoredImage(NamedTuple):
    """Content of an image file to be stored."""

    data: bytes  # JPEG or PNG
    height: int
    width: int
    upright: bool  # to be decoded with its EXIF orientation
    notes: tuple[str, ...]  # peculiarities, for the report: "image", and then one of these


def read_stored_image(
    path: str | os.PathLike,
    annotated: tuple[int | None, int | None] = (None, None),
    rotation: Rotation = "auto",
    data: bytes | None = None,
    drawn_upright: bool = False,
) -> StoredImage:
    """Reads an image file for a data set, and checks that it decodes to the annotated size.

    Args:
        path: of the file.
        annotated: height and width according to the annotations, if they say.
        rotation: frame of the annotations, if the photo has an EXIF orientation; "auto" takes the one that
            has the annotated size, or ``drawn_upright`` if both have.
        data: content of the image, if ``path`` is the file that it is embedded in.
        drawn_upright: the tools of the annotations' format show the upright picture.

    Raises:
        InputError: the file is missing, no image, truncated, damaged, or of another size.
    """
    data, name, notes = read_file(path) if data is None else data, f"image {path}", []
    stored = pixels = decode_image(data, name)
    upright = False
    if rotation != "stored" and _may_be_rotated(data):
        turned = decode_image(data, name, upright=True)
        if turned.shape != stored.shape or not np.array_equal(turned, stored):
            fits = _fits(annotated, turned) and (drawn_upright or not _fits(annotated, stored))
            upright = rotation == "upright" or fits
            pixels = turned if upright else stored
            note = "rotated as its EXIF orientation says" if upright else (
                "with an EXIF orientation that is not applied (--rotation upright applies it)")  # fmt: skip
            notes.append(note)
    height, width = pixels.shape[:2]
    if not _fits(annotated, pixels):
        size = f"{width}x{height} (width x height)"
        raise InputError(f"{name} is {size}, but {_explain(annotated, height, width)}")
    if is_jpeg(data) or is_png(data):
        whole = whole_image(data, name)
        if len(whole) < len(data) and data[len(whole) :].strip(b"\0"):
            notes.append("followed by other data, which is not kept")
        elif whole[: len(data)] != data[: len(whole)] or len(whole) > len(data):
            notes.append("without an end marker, which is added")
        data = whole
        if is_png(data):
            notes += [_PAGES] * (b"acTL" in data[:1024])
            notes += _note_depth(data) if extent(data).bits > 8 else []
    else:
        if other_size(data)[2] > 1:
            notes.append(_PAGES)
        data, upright = _to_png(pixels), False
        notes.append("converted to PNG")
    return StoredImage(data, height, width, upright, tuple(notes))


def _may_be_rotated(data: bytes) -> bool:
    if is_jpeg(data):
        return b"Exif" in data[:65536]
    return b"eXIf" in data if is_png(data) else data[8:12] == b"WEBP" and b"EXIF" in data or is_avif(data)


def _fits(annotated: tuple[int | None, int | None], image: np.ndarray) -> bool:
    pairs = zip(annotated, image.shape[:2], strict=True)
    return all(given is None or given == actual for given, actual in pairs)


def _explain(annotated: tuple[int | None, int | None], height: int, width: int) -> str:
    given_height, given_width = (given or "?" for given in annotated)
    text = f"annotated as {given_width}x{given_height}"
    if (given_height, given_width) == (width, height):
        return f"{text}, with height and width exchanged, and no EXIF orientation explains it"
    return text


def _note_depth(data: bytes) -> list[str]:
    largest = int(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).max())
    used = used_bits(largest)
    return [f"of 16 bits, of which {used} are used"] if used < 16 else []


def _to_png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
