"""Broken uploads: whatever comes is answered by objects or by one sentence with a status of 4xx."""

import asyncio
from functools import cache

import cv2
import numpy as np
import pytest
from asgi import BOUNDARY, FORM, form, request
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from stub_pipeline import INFO, StubPipeline

from mrcnn_jax.serving.app import Service, make_app
from mrcnn_jax.serving.batching import Batcher
from mrcnn_jax.serving.uploads import DEFAULT_LIMITS, Limits, decode_upload, read_upload

LIMITS = Limits(megabytes=0.05, megapixels=0.05, requests=4, seconds=5)
SUFFIXES = (".png", ".jpg", ".webp", ".tiff", ".bmp")
TYPES = st.sampled_from(
    ["", "image/jpeg", "application/octet-stream", "text/plain", FORM["Content-Type"], "image/\xe9",
     "multipart/form-data", f"multipart/form-data; charset=none; boundary={BOUNDARY}",
     "multipart/form-data; boundary="]
)  # fmt: skip

FILENAMES = ('filename="a.png"', "filename=", 'filename="\xff\n"', "filename*=utf-8''%00")


@cache
def image(suffix: str, height: int, width: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


@st.composite
def files(draw) -> bytes:
    """Images, some of extreme shapes, of which bytes are changed, left out or repeated; or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    size = draw(st.sampled_from([(9, 14), (1, 1), (1, 900), (700, 1), (260, 240)]))
    data = bytearray(image(draw(st.sampled_from(SUFFIXES)), *size))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([30, 200, 10**6])))))
        change = draw(st.sampled_from("scer"))
        if change == "s":
            data[place] = draw(st.integers(0, 255))
        elif change == "c":
            del data[max(place, 1) :]
        elif change == "e":
            data[place : place + 4] = draw(st.sampled_from([bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff"]))
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 60))]
    return bytes(data)


@st.composite
def bodies(draw) -> bytes:
    """Files as they are, or in forms that are whole or broken."""
    data = draw(files())
    if draw(st.booleans()):
        return data
    filename = draw(st.sampled_from(FILENAMES))
    whole = form(data, draw(st.sampled_from(["image", "", "a" * 300])), filename)
    end = draw(st.sampled_from([len(whole), len(whole) - 5, 20, 60]))
    return whole[:end] + draw(st.sampled_from([b"", whole, b"\r\n"]))


@pytest.fixture(scope="module")
def send():
    """``send(body, type)``: the answer of an application in one event loop."""
    patch = pytest.MonkeyPatch()
    patch.setattr("mrcnn_jax.serving.batching.Pipeline", StubPipeline)
    batcher = Batcher([], lambda upload: decode_upload(upload, LIMITS), 2)
    app = make_app(Service(batcher, INFO, "cats", 0.5, LIMITS))
    with asyncio.Runner() as runner:
        yield lambda body, kind: runner.run(
            request(app, "POST", "/predict", [body[:40], body[40:]], {"Content-Type": kind}))  # fmt: skip
    batcher.close()
    patch.undo()


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(bodies(), TYPES)
def test_every_upload_is_answered_or_refused_with_a_sentence(send, body, kind):
    answer = send(body, kind)
    if answer.status == 200:
        (found,) = answer.json["images"]
        assert found["height"] * found["width"] <= LIMITS.megapixels * 1e6
    else:
        assert answer.status in (413, 415, 422)
        sentence = answer.json["error"]
        assert sentence.isprintable() and 10 < len(sentence) < 400


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_images_are_answered(send, suffix):
    for size in ((9, 14), (1, 1), (1, 900), (200, 240)):
        data = image(suffix, *size)
        kind = FORM["Content-Type"]
        for body, type_ in ((data, "image/x"), (form(data), kind)):
            if len(body) < 50_000:
                (found,) = send(body, type_).json["images"]
                assert (found["height"], found["width"]) == size


@pytest.mark.parametrize("side", [300, 30_000, 60_000])
def test_image_bombs_are_refused_before_they_are_decoded(send, side, monkeypatch):
    """A header that claims many pixels, alone or after one that claims few."""
    monkeypatch.setattr("mrcnn_jax.serving.uploads.decode_image", None)
    png, jpeg = bytearray(image(".png", 9, 14)), image(".jpg", 9, 14)
    png[16:24] = side.to_bytes(4, "big") * 2
    frame = jpeg.index(b"\xff\xc0")
    length = int.from_bytes(jpeg[frame + 2 : frame + 4], "big") + 2
    bomb = bytearray(jpeg[frame : frame + length])
    bomb[5:9] = side.to_bytes(2, "big") * 2
    start, given, rest = jpeg[:frame], jpeg[frame : frame + length], jpeg[frame + length :]
    for data in (bytes(png), start + bytes(bomb) + rest, start + bytes(bomb) + given + rest):
        answer = send(data, "image/any")
        assert answer.status == 413 and f"{side}x{side} pixels" in answer.json["error"]


def test_large_forms_stay_in_memory(monkeypatch):
    """Starlette would write files of more than a megabyte to disk."""

    def refuse(self):
        raise AssertionError("a file is written")

    async def receive():
        return {"type": "http.request", "body": form(data)}

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", refuse)
    data = image(".bmp", 800, 700)
    assert len(data) > 2**20
    headers = [(b"content-type", FORM["Content-Type"].encode())]
    upload = asyncio.run(read_upload(Request({"type": "http", "headers": headers}, receive), DEFAULT_LIMITS))
    assert upload == ("photo.png", data)
