"""Image files: every form becomes RGB, stored or upright; files that cannot be decoded are named."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrcnn_jax.data.image_io import decode_image, read_image, save_image
from mrcnn_jax.errors import InputError

RGB = np.random.default_rng(1).choice(np.uint8([0, 51, 204]), (7, 9, 3))  # colours of the web palette
GRAY = np.random.default_rng(0).integers(0, 256, (7, 9), np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)


def encode(image, kind="PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def repeat(gray):
    return np.repeat(gray[..., None], 3, axis=2)


@pytest.mark.parametrize(
    "data, expected",
    [
        (encode(RGB), RGB),
        (encode(RGB, "TIFF"), RGB),
        (encode(RGB, "BMP"), RGB),
        (encode(RGB, "GIF"), RGB),
        (encode(RGB, "WEBP", lossless=True), RGB),
        (encode(np.dstack([RGB, GRAY])), RGB),
        (encode(GRAY), repeat(GRAY)),
        (encode(GRAY > 99), repeat(255 * (GRAY > 99))),
        (encode(Image.fromarray(RGB).convert("P")), RGB),
        (encode(GRAY.astype(np.uint16) * 256 + 77), repeat(GRAY)),
        (encode(GRAY.astype(np.uint16) * 256 + 77, "TIFF"), repeat(GRAY)),
        (encode(np.full((8, 8), 77, np.uint8), "JPEG"), np.full((8, 8, 3), 77)),
    ],
)  # fmt: skip
def test_decode_image_makes_any_form_rgb(data, expected):
    decoded = decode_image(data, "image 1")
    assert decoded.dtype == np.uint8 and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("kind, tolerance", [("PNG", 0), ("JPEG", 3)])
def test_decode_image_orders_channels_red_green_blue(kind, tolerance):
    decoded = decode_image(encode(np.tile(np.uint8([250, 128, 10]), (8, 8, 1)), kind), "image 1")
    np.testing.assert_allclose(decoded[4, 4].astype(int), [250, 128, 10], atol=tolerance)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied_only_on_request(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter, clockwise
    path = tmp_path / f"turned.{kind.lower()}"
    image = np.kron(np.array([[0, 255]], np.uint8), np.ones((16, 16), np.uint8))
    path.write_bytes(encode(image, kind, exif=exif))
    stored, upright = read_image(path), read_image(path, upright=True)
    assert stored.shape == (16, 32, 3) and upright.shape == (32, 16, 3)
    np.testing.assert_array_equal(upright, np.rot90(stored, -1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_images_are_named(kind, kept):
    data = encode(NOISE, kind)
    with pytest.raises(InputError, match="^cannot read image 3: it is truncated or damaged"):
        decode_image(data[: int(kept * len(data))], "image 3")


def test_read_image_says_why_a_file_cannot_be_read(tmp_path):
    path = tmp_path / "photo.jpg"
    with pytest.raises(InputError, match=f"^cannot read image {path}: No such file or directory$"):
        read_image(path)
    path.write_text("not an image")
    with pytest.raises(InputError, match=f"^cannot read image {path}: .*not an image of a known format$"):
        read_image(path)
    with pytest.raises(InputError, match="^cannot read image"):
        read_image(tmp_path)


def test_save_image_writes_the_format_of_the_extension(tmp_path):
    save_image(tmp_path / "new" / "a.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), RGB)
    with pytest.raises(InputError, match="cannot write image .*a.unknown: unknown file extension"):
        save_image(tmp_path / "a.unknown", RGB)


def test_read_image_agrees_with_pillow_on_photographs():
    if not os.environ.get("MRCNN_TEST_DATA"):
        pytest.skip("MRCNN_TEST_DATA is unset")
    for name in ("coco_instances/val", "dsb2018_nuclei/val"):
        for path in sorted((Path(os.environ["MRCNN_TEST_DATA"]) / name).iterdir())[:20]:
            opened = Image.open(path)
            np.testing.assert_array_equal(read_image(path), np.asarray(opened.convert("RGB")))
