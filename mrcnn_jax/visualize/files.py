"""Pictures as files of bounded size."""

import io
import os

import numpy as np
from etils import epath
from PIL import Image

from mrcnn_jax.atomic_io import replacing
from mrcnn_jax.visualize.draw import Picture

MAX_BYTES = 3_000_000
"""Largest file of a picture."""
_QUALITIES = 92, 85, 75, 60, 45


def save_picture(path: str | os.PathLike, picture: Picture, max_bytes: int = MAX_BYTES) -> epath.Path:
    """Writes a picture as PNG or, where that would be too large, as JPEG under the same name with .jpg.

    The file is written whole or not at all; folders above it are made.

    Args:
        path: file with the suffix .png.
        picture: of any size; one that does not even fit as JPEG is reduced.
        max_bytes: of the file.

    Returns:
        The file.
    """
    path, data = epath.Path(path), b""
    if _estimate_png(picture) <= 1.05 * max_bytes:
        data = _encode(picture, "PNG", compress_level=4)
    if not 0 < len(data) <= max_bytes:
        path, data = path.with_suffix(".jpg"), jpeg_within(picture, max_bytes)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _estimate_png(picture: Picture) -> float:
    """Returns about the bytes of a picture as PNG, by bands of it: an eighth of the time of a large one."""
    rows = len(picture) // 64 * 64
    if not rows:
        return 0
    bands = picture[:rows].reshape(-1, 64, *picture.shape[1:])[:, :8].reshape(-1, *picture.shape[1:])
    return 8 * len(_encode(bands, "PNG", compress_level=4))


def reduced(picture: Picture, max_side: int) -> Picture:
    """Returns a picture reduced by the whole number that makes no side longer than ``max_side`` pixels."""
    return np.asarray(Image.fromarray(picture).reduce(-(-max(picture.shape[:2]) // max_side)))


def jpeg_within(picture: Picture, max_bytes: int) -> bytes:
    """Returns a picture as the content of a JPEG file within a size, reduced if no quality is low enough."""
    for reduction in (1, 2, 4, 8):
        image = Image.fromarray(picture).reduce(reduction)
        for quality in _QUALITIES:
            data = _encode(image, "JPEG", quality=quality)
            if len(data) <= max_bytes:
                return data
    return data


def _encode(picture: Picture | Image.Image, kind: str, **options: int) -> bytes:
    encoded = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(encoded, kind, **options)
    return encoded.getvalue()
