"""Mutated image files are read, or refused in one sentence, for a data set and for prediction alike."""

import io
from functools import cache

import cv2
import numpy as np
from fuzz import Campaign
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mrcnn_jax.data.image_io import decode_image, read_image
from mrcnn_jax.data.stored_image import read_stored_image
from mrcnn_jax.errors import InputError

CAMPAIGN = Campaign("images", cases=1_000, cases_in_ci=200)
SIZES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 60_000, 2**31 - 1, 2**32 - 1)


@cache
def originals() -> list[bytes]:
    """Small images in all formats and forms that are read."""
    random = np.random.default_rng(5)
    pixels = cv2.resize(random.integers(0, 256, (5, 7, 3), np.uint8), (45, 31))
    image, gray = Image.fromarray(pixels), pixels[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = {"save_all": True, "append_images": [Image.fromarray(pixels[::-1].copy())]}
    forms = [
        *((image, kind, {}) for kind in "JPEG PNG TIFF BMP GIF WEBP JPEG2000 AVIF".split()),
        *((image, kind, {}) for kind in "PPM TGA PCX SGI ICO".split()),
        *((image, kind, {"exif": exif.tobytes()}) for kind in ("JPEG", "PNG", "WEBP", "TIFF")),
        *((image, kind, pages) for kind in ("TIFF", "GIF", "WEBP", "PNG", "MPO")),
        (image, "JPEG", {"progressive": True}),
        (image, "JPEG", {"restart_marker_blocks": 2}),
        (image.convert("CMYK"), "JPEG", {}),
        (image.convert("CMYK"), "TIFF", {}),
        *((image.convert(mode), "PNG", {}) for mode in ("P", "LA", "RGBA", "1")),
        *((image, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        (image.convert("1"), "TIFF", {"compression": "group4"}),
        (Image.fromarray(gray.astype(np.uint16) * 100), "PNG", {}),
        (Image.fromarray(gray.astype(np.uint16) * 100), "TIFF", {}),
        (Image.fromarray(gray.astype(np.float32)), "TIFF", {}),
        (Image.fromarray(gray.astype(np.int32)), "TIFF", {}),
    ]
    encoded = []
    for picture, kind, options in forms:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        encoded.append(file.getvalue())
    return encoded


@st.composite
def image_files(draw) -> bytes:
    """Draws a file: an image with changed bytes, other header fields, pieces cut, repeated or of another."""
    data = bytearray(draw(st.sampled_from(originals())))
    for _ in range(draw(st.integers(0, 4))):
        near_start = draw(st.booleans())
        place = draw(st.integers(0, min(len(data), 64) if near_start else len(data)))
        kind = draw(st.sampled_from(["flip", "number", "cut", "remove", "repeat", "insert", "join", "zeros"]))
        if kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            width, order = draw(st.sampled_from([2, 4])), draw(st.sampled_from(["big", "little"]))
            value = draw(st.sampled_from(SIZES)) % 256**width
            data[place : place + width] = value.to_bytes(width, order)
        elif kind == "cut":
            del data[place:]
        elif kind == "remove":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=32))
        elif kind == "join":
            data += draw(st.sampled_from(originals()))
        elif kind == "zeros":
            data[place:] = bytes(len(data) - place)
    return bytes(data)


@CAMPAIGN.settings
@given(data=image_files(), rotation=st.sampled_from(["auto", "stored", "upright"]))
def test_mutated_image_is_read_or_refused(tmp_path_factory, data, rotation):
    path = tmp_path_factory.getbasetemp() / "image"
    path.write_bytes(data)
    with CAMPAIGN.case():
        try:
            shown = read_image(path, upright=True)
        except InputError as error:
            shown = None
            assert str(error).startswith(f"cannot read image {path}: ")
        stored = read_stored_image(path, rotation=rotation)
        decoded = decode_image(stored.data, "image", upright=stored.upright)
        assert decoded.shape == (stored.height, stored.width, 3) and decoded.dtype == np.uint8
        assert stored.data.startswith((b"\xff\xd8", b"\x89PNG"))
        assert shown is not None and shown.size == decoded.size


def test_figures():
    CAMPAIGN.write()
