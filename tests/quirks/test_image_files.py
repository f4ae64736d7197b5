"""Image files."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from converted_sets import convert
from PIL import Image
from quirks import quirk
from small_sets import write_set

from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.image_files import find_image_files
from mrcnn_jax.data.image_io import decode_image, read_image
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.data.stored_image import read_stored_image
from mrcnn_jax.data.transforms import decode_record
from mrcnn_jax.errors import InputError

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 56, 3), np.uint8)
SMOOTH = cv2.resize(PIXELS[:6, :8], (56, 40), interpolation=cv2.INTER_CUBIC)


def encode(image, kind="PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def stored(tmp_path: Path, data: bytes, *args, **kwargs):
    (tmp_path / "image").write_bytes(data)
    return read_stored_image(tmp_path / "image", *args, **kwargs)


def oriented(orientation: int, kind: str = "JPEG", image=SMOOTH) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, kind, exif=exif.tobytes())


JPEG, PROGRESSIVE, PNG = encode(SMOOTH, "JPEG"), encode(SMOOTH, "JPEG", progressive=True), encode(SMOOTH)
TAILS = {
    "video": b"\0\0\0\x18ftypmp42" + b"\xff\xda" + bytes(100),
    "zeros": bytes(100),
    "line end": b"\r\n",
    "marker": b"\xff\xd9",
    "another JPEG": JPEG,
    "half a JPEG": JPEG[:300],
    "another PNG": PNG,
    "text": b"<!-- saved -->" * 10,
}


@quirk(
    "motion photos, MPO and others: data after the end of a JPEG or PNG",
    "accepted; the data is not stored",
)
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, PNG], ids=["JPEG", "progressive", "PNG"])
def test_data_after_the_end(tmp_path, data, tail):
    result = stored(tmp_path, data + tail)
    assert result.data == data and result[1:4] == (40, 56, False)
    assert result.notes == (("followed by other data, which is not kept",) if tail.strip(b"\0") else ())
    np.testing.assert_array_equal(decode_image(data + tail, "image"), decode_image(data, "image"))


@quirk("a JPEG without end marker", "accepted if no pixel is missing; the marker is added")
@pytest.mark.parametrize("tail", [b"", bytes(50)], ids=["cut", "zeros"])
@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 20}, {"subsampling": 0}, {"restart_marker_blocks": 2}, {"optimize": True}],
    ids=str,
)
def test_jpeg_without_end_marker(tmp_path, options, tail):
    for image in (SMOOTH, PIXELS, SMOOTH[..., 0]):
        data = encode(image, "JPEG", **options)
        result = stored(tmp_path, data[:-2] + tail)
        assert result.data == data and result.notes == ("without an end marker, which is added",)


@quirk("truncated images, also those filled up with zeros", "left out and named; never shown half gray")
@pytest.mark.parametrize("tail", [b"", bytes(500)], ids=["cut", "zeros"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("image", [SMOOTH, PIXELS], ids=["smooth", "noise"])
@pytest.mark.parametrize(
    "kind, options",
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("TIFF", {}), ("BMP", {}), ("GIF", {})]
    + [("JPEG", {"restart_marker_blocks": 4}), ("WEBP", {}), ("TIFF", {"compression": "tiff_lzw"})],
    ids=str,
)
def test_truncated_images(kind, options, image, kept, tail):
    data = encode(image, kind, **options)
    cut = data[: int(kept * len(data))] + tail
    if tail and kind in ("TIFF", "BMP"):  # without compression, zeros are pixels
        return
    with pytest.raises(InputError, match="^cannot read image 3: it is truncated or damaged"):
        decode_image(cut, "image 3")


FORMATS = {
    "TIFF": encode(PIXELS, "TIFF"),
    "TIFF, LZW": encode(PIXELS, "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": encode(PIXELS, "TIFF", compression="tiff_adobe_deflate"),
    "BMP": encode(PIXELS, "BMP"),
    "WebP": encode(PIXELS, "WEBP", lossless=True),
    "JPEG 2000": encode(PIXELS, "JPEG2000"),
    "PPM": encode(PIXELS, "PPM"),
    "TGA": encode(PIXELS, "TGA"),
    "PCX": encode(PIXELS, "PCX"),
    "SGI": encode(PIXELS, "SGI"),
    "TIFF, RGBA": encode(Image.fromarray(PIXELS).convert("RGBA"), "TIFF"),
    "WebP, RGBA": encode(np.dstack([PIXELS, PIXELS[..., :1] | 1]), "WEBP", lossless=True, exact=True),
}


@quirk(
    "TIFF, BMP, WebP, GIF, JPEG 2000, PPM and other formats that OpenCV or Pillow read",
    "converted to PNG",
)
@pytest.mark.parametrize("data", FORMATS.values(), ids=FORMATS)
def test_formats_are_converted(tmp_path, data):
    result = stored(tmp_path, data)
    assert result.data.startswith(b"\x89PNG") and result.notes[-1] == "converted to PNG"
    np.testing.assert_array_equal(decode_image(result.data, "image"), PIXELS)
    np.testing.assert_array_equal(read_image(tmp_path / "image"), PIXELS)


@pytest.mark.parametrize("suffix", ["tif", "bmp", "webp", "gif", "jp2", "png"])
def test_sets_of_other_formats_are_prepared(tmp_path, suffix):
    directory, reports = prepare(write_set(tmp_path / "set", suffix=suffix), tmp_path / "out")
    (first, *_) = open_dataset(directory, "train")
    np.testing.assert_array_equal(decode_record(first), read_image(tmp_path / f"set/images/1.{suffix}"))
    assert ("image converted to PNG" in str(reports["train"])) == (suffix != "png")


PAGES = [PIXELS, PIXELS[::-1].copy(), PIXELS[:, ::-1].copy()]


@quirk("several pages of a TIFF, frames of a GIF, WebP or AVIF", "the first is used, which is said")
@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "AVIF", "PNG"])
def test_pages(tmp_path, kind):
    first, *others = map(Image.fromarray, PAGES)
    data = encode(first, kind, save_all=True, append_images=others)
    assert "of several pages or frames, of which the first is used" in stored(tmp_path, data).notes
    if kind in ("TIFF", "GIF", "PNG"):
        np.testing.assert_array_equal(decode_image(data, "image"), decode_image(encode(first, kind), "image"))


RAMP = np.linspace(0, 1, 40 * 56).reshape(40, 56)


@quirk(
    "8, 10, 12, 14 or 16 bits in samples of 16",
    "scaled by the bits that the largest value needs, which is said",
)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_images(tmp_path, kind, bits):
    deep = np.round(RAMP * (2**bits - 1)).astype(np.uint16)
    result = stored(tmp_path, encode(deep, kind))
    decoded = decode_image(result.data, "image")
    np.testing.assert_array_equal(decoded, np.repeat((deep >> (bits - 8))[..., None], 3, axis=2))
    if kind == "PNG":
        assert result.notes == ((f"of 16 bits, of which {bits} are used",) if bits < 16 else ())
    colour = cv2.imencode(".png", np.dstack([deep, deep[::-1], 0 * deep]))[1].tobytes()
    decoded = decode_image(colour, "image")
    np.testing.assert_array_equal(decoded, np.dstack([0 * deep, deep[::-1], deep]) >> (bits - 8))


@quirk(
    "floating-point values from 0 to 1 or from 0 to 255",
    "scaled, or taken as they are; others are refused",
)
@pytest.mark.parametrize("scale", [1, 255])
def test_floating_point_images(scale):
    data = encode((RAMP * scale).astype(np.float32), "TIFF")
    expected = np.repeat(np.round(RAMP.astype(np.float32) * 255)[..., None], 3, axis=2)
    assert np.abs(decode_image(data, "image") - expected).max() <= 1
    integers = encode((RAMP * 255).astype(np.int32), "TIFF")
    assert np.abs(decode_image(integers, "image") - expected).max() <= 1


@pytest.mark.parametrize("low, high", [(-1, 1), (0, 1e6), (np.nan, 1), (0, np.inf)])
def test_other_floating_point_images_are_refused(low, high):
    values = RAMP.astype(np.float32)
    values[0, :2] = low, high
    with pytest.raises(InputError, match="its values reach from .* save it with 8 bits"):
        decode_image(encode(values, "TIFF"), "image")


PALETTE = Image.fromarray(SMOOTH).convert("P", palette=Image.Palette.ADAPTIVE)
FORMS = {
    "palette": encode(PALETTE),
    "transparency": encode(PALETTE, transparency=3),
    "CMYK JPEG": encode(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=98),
    "CMYK TIFF": encode(Image.fromarray(SMOOTH).convert("CMYK"), "TIFF"),
    "gray and alpha": encode(Image.fromarray(SMOOTH).convert("LA")),
    "RGBA": encode(Image.fromarray(SMOOTH).convert("RGBA")),
    "1 bit": encode(Image.fromarray(SMOOTH).convert("1")),
    "1 bit, TIFF group 4": encode(Image.fromarray(SMOOTH).convert("1"), "TIFF", compression="group4"),
    "palette GIF": encode(Image.fromarray(SMOOTH), "GIF"),
    "palette BMP": encode(Image.fromarray(SMOOTH).convert("P"), "BMP"),
}


@quirk("palettes, transparency, CMYK, 1 bit, gray with alpha", "become RGB; alpha is dropped")
@pytest.mark.parametrize("data", FORMS.values(), ids=FORMS)
def test_forms_become_rgb(tmp_path, data):
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray((image.convert("RGBA") if image.mode == "P" else image).convert("RGB"))
    decoded = decode_image(stored(tmp_path, data).data, "image")
    assert np.abs(decoded.astype(int) - expected).mean() < 1.5


@quirk(
    "photos with an EXIF orientation, annotated upright: sizes say so",
    "rotated; `--rotation` decides otherwise",
)
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_rotated_photos(tmp_path, kind, orientation):
    data = oriented(orientation, kind)
    upright = stored(tmp_path, data, (56, 40))
    assert upright[1:3] == (56, 40) and "rotated as its EXIF orientation says" in upright.notes
    shown = decode_image(upright.data, "image", upright=upright.upright)
    np.testing.assert_array_equal(shown, read_image(tmp_path / "image", upright=True))
    assert upright.upright == (kind != "WEBP")  # a PNG is made of the rotated pixels
    as_stored = stored(tmp_path, data, (40, 56))
    assert as_stored[1:4] == (40, 56, False) and "EXIF orientation that is not applied" in as_stored.notes[0]
    assert stored(tmp_path, data, rotation="upright")[1:3] == (56, 40)
    assert stored(tmp_path, data, rotation="stored")[1:3] == (40, 56)
    assert stored(tmp_path, data, (56, None))[1:3] == (56, 40)
    with pytest.raises(InputError, match="is 56x40 .*, but annotated as 40x56"):
        stored(tmp_path, data, (56, 40), "stored")


@quirk(
    "photos with an EXIF orientation that sizes cannot tell (square, upside down)",
    "taken as stored, which is said",
)
@pytest.mark.parametrize("orientation, image", [(2, SMOOTH), (3, SMOOTH), (4, SMOOTH), (6, SMOOTH[:, :40])])
def test_orientations_that_sizes_cannot_tell(tmp_path, orientation, image):
    data = oriented(orientation, image=image)
    result = stored(tmp_path, data, image.shape[:2])
    assert not result.upright and "--rotation upright applies it" in result.notes[0]
    assert stored(tmp_path, data, image.shape[:2], "upright").upright
    assert not stored(tmp_path, oriented(1), (40, 56)).notes


def test_prepared_photos_are_decoded_in_the_annotated_frame(tmp_path):
    def swap(content):
        for image in content["images"][:2]:
            image.update(width=64, height=96)

    def save(image, path):
        path.write_bytes(oriented(6, image=image))

    folder = write_set(tmp_path / "set", swap, save=save)
    split = open_dataset(prepare(folder, tmp_path / "out").directory, "train")
    assert [record.upright for record in split] == [True, True, False, False]
    assert split.sizes.tolist() == [[96, 64]] * 2 + [[64, 96]] * 2
    for record in split:
        assert decode_record(record).shape[:2] == (record.height, record.width)


@quirk("height and width exchanged without an EXIF orientation", "left out and named as that")
def test_exchanged_sizes(tmp_path):
    with pytest.raises(InputError, match="annotated as 40x56, with height and width exchanged, and no EXIF"):
        stored(tmp_path, PNG, (56, 40))


NO_IMAGES = {
    "empty": (b"", "empty"),
    "zeros": (bytes(99), "nothing but zeros"),
    "web page": (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
    "JSON": (b'{"error": "not found"}', "text, perhaps JSON"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "an HEIC photo: convert it to JPEG"),
    "video": (b"\0\0\0\x18ftypmp42\0\0\0\0" + bytes(50), "a video"),
    "PDF": (b"%PDF-1.4\n", "a PDF file"),
    "ZIP": (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
    "SVG": (b"<svg></svg>", "a vector drawing"),
    "text": (b"hello", "not an image of a known format"),
}


@quirk(
    "a web page, an error message, a pointer of Git LFS, a video or an empty file named `.jpg`",
    "named as that",
)
@pytest.mark.parametrize("data, meaning", NO_IMAGES.values(), ids=NO_IMAGES)
def test_files_that_are_no_images(tmp_path, data, meaning):
    for read in (read_stored_image, read_image):
        (tmp_path / "1.jpg").write_bytes(data)
        with pytest.raises(InputError, match=f"^cannot read image .*1.jpg: it .*{meaning}"):
            read(tmp_path / "1.jpg")


def claimed(kind: str, side: int) -> bytes:
    """Returns a small file whose header claims a size."""
    if kind == "PNG":
        header = struct.pack(">II", side, side) + PNG[24:29]
        return PNG[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + PNG[33:]
    if kind == "JPEG":
        position = JPEG.index(b"\xff\xc0") + 5
        return JPEG[:position] + struct.pack(">HH", side, side) + JPEG[position + 4 :]
    data = FORMATS[kind]
    if kind == "BMP":
        return data[:18] + struct.pack("<ii", side, side) + data[26:]
    return data.replace(b"56 40", f"{side} {side}".encode())  # PPM


@quirk("a header that claims 60,000 x 60,000 pixels", "refused at once, without the memory for them")
@pytest.mark.parametrize("side", [30_000, 60_000])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "PPM"])
def test_claims_of_headers(kind, side):
    with pytest.raises(InputError, match=r"^cannot read image: it (claims to be|is truncated)"):
        decode_image(claimed(kind, side), "image")


@quirk("unusable images among usable ones", "left out, all named, up to `--max-bad`")
def test_unusable_images_are_left_out(tmp_path):
    folder = write_set(tmp_path / "set", count=8)
    for name, content in {"2.jpg": b"", "5.jpg": JPEG[:300]}.items():
        (folder / "images" / name).write_bytes(content)
    named = "2 of 8 images cannot be used, .*2.jpg: it is empty; 5.jpg: it is truncated"
    with pytest.raises(InputError, match=named):
        prepare(folder, tmp_path / "out")
    directory, reports = prepare(folder, tmp_path / "out", max_bad=0.25)
    assert len(open_dataset(directory, "train")) == 6 and "2.jpg" in str(reports["train"])


@quirk("an unusable image, and few images for validation", "it is not drawn for them")
def test_unusable_images_are_not_drawn_for_validation(tmp_path):
    folder = write_set(tmp_path / "set")
    for name in ("2.jpg", "3.jpg"):
        (folder / "images" / name).write_bytes(JPEG[:300])
    for seed in range(3):
        _, reports = prepare(folder, tmp_path / str(seed), validation_images=1, seed=seed, max_bad=0.5)
        assert not reports["validation"].images_left_out
        assert reports["train"].images_left_out == {"it is truncated or damaged": ["2.jpg", "3.jpg"]}
    with pytest.raises(InputError, match="2 of 3 images cannot be used.*2.jpg: .*3.jpg: "):
        prepare(folder, tmp_path / "out", validation_images=1)


@quirk(
    "folders in folders, capital suffixes, leftovers of systems",
    "`predict` takes all image files below a folder",
)
def test_image_files_below_folders(tmp_path):
    names = ["b/1.JPG", "a/c/2.jfif", "3.jp2", "4.ppm", "5.tiff"]
    others = ["notes.txt", "b/2.txt", ".DS_Store", "._1.jpg", "__MACOSX/1.jpg", "@eaDir/1.jpg", ".git/1.jpg"]
    for name in [*names, *others, "Thumbs.db"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_image_files([tmp_path])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found.files) == sorted(names)
    assert found.skipped == {".txt": 2}
    assert find_image_files([tmp_path / "notes.txt"]).files == [tmp_path / "notes.txt"]
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "none"):
        with pytest.raises(InputError, match=missing):
            find_image_files([tmp_path / missing])


@pytest.mark.parametrize("name", ["\udce4.jpg", "日本.jpg", "[red]1[/red].jpg"])
def test_names_of_any_script_are_stored(tmp_path, name):
    folder = write_set(tmp_path / "set", count=1, names=[name])
    directory, reports = prepare(folder, tmp_path / "out")
    assert open_dataset(directory, "train")[0].file_name == name and not reports["train"].images_left_out


@quirk("an image of 192 megapixels", "read by all commands")
@pytest.mark.slow
def test_very_large_image(tmp_path):
    Image.new("RGB", (16_000, 12_000), (9, 8, 7)).save(tmp_path / "1.png")
    assert read_stored_image(tmp_path / "1.png", (12_000, 16_000)).notes == ()
    assert read_image(tmp_path / "1.png", upright=True)[-1, -1].tolist() == [9, 8, 7]


ALL_UNUSABLE = {
    "missing": (lambda image: image.update(file_name=f"x{image['id']}.jpg"), r"x4.jpg: missing from .*im"),
    "without file_name": (lambda image: image.pop("file_name"), "without a file_name"),
    "without id": (lambda image: image.pop("id"), "without an id"),
}


@quirk("no image can be used (wrong folder, LVIS without `file_name`)", "refused with the reasons")
@pytest.mark.parametrize("change, reason", ALL_UNUSABLE.values(), ids=ALL_UNUSABLE)
@pytest.mark.parametrize("validation_images", [0, 2])
def test_no_image_can_be_used(tmp_path, change, reason, validation_images):
    def all_images(content):
        for image in content["images"]:
            change(image)

    with pytest.raises(InputError, match=f"4 of 4 images cannot be used, none is left .*{reason}"):
        convert(tmp_path, all_images, validation_images=validation_images)


def test_missing_images_are_said_before_those_held_out(tmp_path):
    def rename(count):
        return lambda d: [image.update(file_name=f"x{image['id']}") for image in d["images"][:count]]

    with pytest.raises(InputError, match="2 of 4 images cannot be used, --max-bad 0.05 allows 1 "):
        convert(tmp_path, rename(2), validation_images=2)
    with pytest.raises(InputError, match="none of its 3 images is left for training, if 3 are held out"):
        convert(tmp_path, rename(1), validation_images=3)
