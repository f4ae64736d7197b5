"""The HTTP interface: answers, refusals, and descriptions that agree with them."""

import asyncio
import json
import re
from concurrent.futures import Future

import cv2
import numpy as np
import pytest
import stub_pipeline
from asgi import FORM, call, form, request
from pages import Page
from stub_pipeline import INFO, StubPipeline

from mrcnn_jax.serving.app import Service, make_app
from mrcnn_jax.serving.batching import Answer, Batcher
from mrcnn_jax.serving.uploads import Limits, decode_upload

LIMITS = Limits(megabytes=0.02, megapixels=0.01, requests=3, seconds=0.2)
PNG = cv2.imencode(".png", np.zeros((8, 12, 3), np.uint8))[1].tobytes()


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr("mrcnn_jax.serving.batching.Pipeline", StubPipeline)
    batcher = Batcher([], lambda upload: decode_upload(upload, LIMITS), 2)
    yield make_app(Service(batcher, INFO, "cats", 0.5, LIMITS))
    batcher.close()


def refusal(app, status: int, *arguments, **options) -> str:
    answer = call(app, *arguments, **options)
    assert answer.status == status and answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"} and "\n" not in answer.json["error"]
    return answer.json["error"]


def test_an_image_is_answered_by_its_objects_in_cocos_format(app):
    plain = call(app, "POST", "/predict", [PNG])
    assert plain.status == 200 and plain.json == {
        "images": [{"id": 1, "file_name": "the image", "height": 8, "width": 12}],
        "annotations": [{
            "image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 2], "score": 0.75,
            "segmentation": {"size": [8, 12], "counts": "026000X2"},
            "keypoints": [1, 1, 2, 2, 1, 0], "id": 1, "area": 6, "iscrowd": 0, "keypoint_scores": [0.5, 0],
            "num_keypoints": 1,
        }],
        "categories": [
            {"id": 3, "name": "cat", "keypoints": ["nose", "tail"], "skeleton": [[1, 2]]},
            {"id": 90, "name": "dog"},
        ],
    }  # fmt: skip
    sent = call(app, "POST", "/predict", [form(PNG)[:50], form(PNG)[50:]], FORM)
    assert sent.json["annotations"] == plain.json["annotations"]
    assert sent.json["images"][0]["file_name"] == "photo.png"
    for threshold, count in ((0, 2), (0.25, 2), (0.26, 1), (1, 0)):
        path = f"/predict?score_threshold={threshold}"
        answer = call(app, "POST", path, [PNG], {"Content-Type": "image/png"})
        assert len(answer.json["annotations"]) == count
    assert call(app, "GET", "/health").json == {"status": "ok", "requests": 0}


def test_refusals_name_what_is_wrong(app):
    assert refusal(app, 413, "POST", "/predict", [bytes(15_000)] * 2) == "an upload may have 0.02 MB at most"
    large = cv2.imencode(".png", np.zeros((200, 100, 3), np.uint8))[1].tobytes()
    assert "100x200 pixels (width x height), which is more than the 0.01 million" in refusal(
        app, 413, "POST", "/predict", [large])  # fmt: skip
    assert "the Content-Type must be image/..." in refusal(
        app, 415, "POST", "/predict", [PNG], {"Content-Type": "text/html; charset=utf-8"})  # fmt: skip
    assert refusal(app, 415, "POST", "/predict", [form(b"%PDF-1.4")], FORM) == (
        "cannot read photo.png: it is a PDF file")  # fmt: skip
    assert "it is truncated or damaged" in refusal(app, 422, "POST", "/predict", [PNG[:-20]])
    assert "is empty" in refusal(app, 422, "POST", "/predict")
    assert "the form has no file" in refusal(app, 422, "POST", "/predict", [form(PNG, filename="x=1")], FORM)
    field = b'--limit\r\nContent-Disposition: form-data; name="score_threshold"\r\n\r\n0.9\r\n'
    assert refusal(app, 422, "POST", "/predict", [field + form(PNG)], FORM) == (
        "the form has a field 'score_threshold' besides its file: parameters belong to the address, "
        "/predict?score_threshold=0.5")  # fmt: skip
    assert "the form cannot be read" in refusal(app, 422, "POST", "/predict", [b"no form"], FORM)
    assert "Missing boundary" in refusal(
        app, 422, "POST", "/predict", [PNG], {"Content-Type": "multipart/form-data"})  # fmt: skip
    for value in ("x", "nan", "1.5", "-1", ""):
        message = f"score_threshold must be a number from 0 to 1, not '{value}'"
        assert refusal(app, 422, "POST", f"/predict?score_threshold={value}", [PNG]) == message
    assert refusal(app, 422, "POST", "/predict?score=0", [PNG]).startswith("there is no parameter 'score'")
    assert refusal(app, 404, "GET", "/predictions") == "there is no /predictions: see /openapi.json"
    assert refusal(app, 405, "GET", "/predict") == "/predict does not take GET: see /openapi.json"


def test_a_jpeg_of_many_scans_is_refused(app):
    """Each scan costs the time of a whole image, in a few bytes of the file."""
    data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    start = data.rindex(b"\xff\xda")
    message = refusal(app, 422, "POST", "/predict", [data[:start] + data[start:-2] * 200 + data[-2:]])
    assert re.search(r"JPEG of 2\d\d scans, and may have 100", message)


class Waiting:
    """A batcher whose images wait until ``answer``."""

    is_running = True

    def __init__(self):
        self.futures = []

    def submit(self, upload) -> Future:
        self.futures.append(Future())
        return self.futures[-1]


def test_requests_beyond_the_limit_slow_uploads_and_failures_of_the_device_are_refused(capsys):
    batcher = Waiting()
    app = make_app(Service(batcher, INFO, "cats", 0.5, LIMITS))

    async def talk():
        first = [asyncio.create_task(request(app, "POST", "/predict", [PNG])) for _ in range(3)]
        while len(batcher.futures) < 3:
            await asyncio.sleep(0)
        refused = await request(app, "POST", "/predict", [PNG])
        assert refused.status == 503 and refused.headers["retry-after"] == "1"
        assert refused.json["error"].startswith("3 requests are being answered, as many as are allowed")
        assert (await request(app, "GET", "/health")).json["requests"] == 3
        image = np.zeros((8, 12, 3), np.uint8)
        for future in batcher.futures[:2]:
            future.set_result(Answer(stub_pipeline.find(image), (8, 12)))
        batcher.futures[2].set_exception(RuntimeError("the device\nis lost"))
        assert [(await answer).status for answer in first[:2]] == [200, 200]
        assert (await first[2]).status == 500
        assert (await request(app, "POST", "/predict", [PNG], ends=False)).status == 408

    asyncio.run(talk())
    assert capsys.readouterr().err == "Error: RuntimeError: the device\\nis lost\n"


def test_descriptions_agree_with_the_interface(app):
    document = call(app, "GET", "/openapi.json").json
    assert set(document["paths"]) == {"/predict", "/health", "/model"}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])
    schema = document["components"]["schemas"]
    answer = call(app, "POST", "/predict", [PNG]).json
    for name, kind in (("images", "Image"), ("annotations", "Annotation"), ("categories", "Category")):
        for one in answer[name]:
            assert set(schema[kind]["required"]) <= set(one) <= set(schema[kind]["properties"])
    model = call(app, "GET", "/model").json
    assert model["model"] == "cats" and model["categories"] == answer["categories"]
    assert model["limits"] == {"megabytes": 0.02, "megapixels": 0.01} and model["score_threshold"] == 0.5


def test_the_page_needs_nothing_from_elsewhere(app):
    answer = call(app, "GET", "/")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    text = answer.body.decode()
    assert "://" not in text and "import " not in text.split("<script>")[1] and "@import" not in text
    assert len(answer.body) < 40_000
    page = re.sub(r"<(link|input|br)\b[^>]*>", "", re.sub(r"<script>.*</script>", "", text, flags=re.S))
    assert Page(page).sources == ["openapi.json"]
