"""The HTTP interface as an ASGI application: page, detection, description and health."""

import asyncio
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from mrcnn_jax.data.dataset import coco_categories
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import printable
from mrcnn_jax.serving.batching import Answer, Batcher
from mrcnn_jax.serving.openapi import openapi
from mrcnn_jax.serving.uploads import Limits, RequestError, Upload, read_upload
from mrcnn_jax.structures import DatasetInfo

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
}
"""Content-Security-Policy: nothing is loaded from other hosts."""


class Service:
    """Answers requests; nothing of them is stored.

    Args:
        batcher: detects objects in uploads.
        info: classes and keypoints of the detector.
        model: its name.
        score_threshold: minimum score of the objects in an answer whose request gives none.
        limits: of requests.
    """

    def __init__(
        self, batcher: Batcher, info: DatasetInfo, model: str, score_threshold: float,
        limits: Limits,
    ):  # fmt: skip
        self._batcher, self._limits, self._requests = batcher, limits, 0
        self._info, self._score_threshold = info, score_threshold
        self._description = {
            "model": model, "categories": coco_categories(info), "score_threshold": score_threshold,
            "limits": {"megabytes": limits.megabytes, "megapixels": limits.megapixels},
        }  # fmt: skip
        self._page = files(__package__).joinpath("page.html").read_text("utf-8")

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._description)

    async def health(self, request: Request) -> Response:
        running = self._batcher.is_running
        content = {"status": "ok" if running else "stopped", "requests": self._requests}
        return JSONResponse(content, 200 if running else 503)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi(self._limits, self._score_threshold))

    async def predict(self, request: Request) -> Response:
        with self._place():
            threshold = self._threshold(request)
            upload = await read_upload(request, self._limits)
            answer = await self._detect(upload)
            content = await run_in_threadpool(self._content, upload, *answer, threshold)
        return JSONResponse(content, headers={"Cache-Control": "no-store"})

    async def _detect(self, upload: Upload) -> Answer:
        try:
            return await asyncio.wrap_future(self._batcher.submit(upload))
        except RequestError:
            raise
        except Exception as error:  # of the device
            print(f"Error: {type(error).__name__}: {printable(error)}", file=sys.stderr, flush=True)
            message = "the image could not be computed; the server's output says why"
            raise RequestError(500, message) from error

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Counts a request; memory is bounded by their number."""
        if self._requests >= self._limits.requests:
            message = f"{self._requests} requests are being answered, as many as are allowed at once"
            raise RequestError(503, f"{message}: try again in a moment")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def _threshold(self, request: Request) -> float:
        """Returns the minimum score that a request asks for."""
        for name in request.query_params:
            if name != "score_threshold":
                shown = printable(name)[:80]
                raise RequestError(422, f"there is no parameter {shown!r}, only score_threshold")
        given = request.query_params.get("score_threshold", str(self._score_threshold))
        try:
            value = float(given)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            text = printable(given)[:80]
            raise RequestError(422, f"score_threshold must be a number from 0 to 1, not {text!r}")
        return value

    def _content(
        self, upload: Upload, detections: Detections, size: tuple[int, int], threshold: float
    ) -> dict[str, Any]:
        shown = detections.filter(score=threshold)
        image = {"id": 1, "file_name": upload.name, "height": size[0], "width": size[1]}
        annotations = shown.to_coco_annotations(1, self._info)
        return {"images": [image], "annotations": annotations, "categories": coco_categories(self._info)}


def make_app(service: Service) -> Starlette:
    """Returns the application; every refusal is JSON, ``{"error": "a sentence"}``."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        retry = {"Retry-After": "1"} if error.status == 503 else {}
        return JSONResponse({"error": str(error)}, error.status, retry)

    async def refuse_address(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = {
            404: f"there is no {printable(request.url.path)[:80]}: see /openapi.json",
            405: f"{printable(request.url.path)[:80]} does not take {request.method}: see /openapi.json",
        }.get(error.status_code, error.detail)
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    routes = [
        Route("/", service.page), Route("/health", service.health), Route("/model", service.model),
        Route("/openapi.json", service.openapi), Route("/predict", service.predict, methods=["POST"]),
    ]  # fmt: skip
    handlers = {RequestError: refuse, HTTPException: refuse_address}
    return Starlette(routes=routes, exception_handlers=handlers)
