"""Concurrent requests as one stream of images, computed in batches by a thread."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.detections import Detections
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.stream import Pipeline, stream_results
from mrcnn_jax.inference.tiles import stream_tiles


class Answer(NamedTuple):
    """Detections in an image, and its height and width."""

    detections: Detections
    size: tuple[int, int]


class Batcher:
    """Detects objects in the images of concurrent requests.

    As long as images wait they are one stream: the next are decoded while the device computes, those of
    equal padded size are batched, and no more are decoded than that needs (``inference.stream``). When
    none waits, incomplete batches are computed. An image that comes alone is a batch of one.

    Args:
        detector: which detects.
        decode: returns the pixels of what is submitted, or raises InputError.
        batch_size: images that are computed at once.
        tile: as in ``Detector.stream``; then the tiles of each image are batched.
        tile_overlap: likewise.
    """

    def __init__(
        self, detector: Detector, decode: Callable[[Any], np.ndarray], batch_size: int = 1, tile: int = 0,
        tile_overlap: float = 0.25,
    ):  # fmt: skip
        self._single, self._batched = Pipeline(detector), Pipeline(detector, batch_size)
        self._decode, self._tile, self._tile_overlap = decode, tile, tile_overlap
        self._waiting: SimpleQueue[tuple[Any, Future[Answer]] | None] = SimpleQueue()
        self._closing = False
        self._thread = Thread(target=self._run, name="detection", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Tests that images are accepted and computed."""
        return self._thread.is_alive()

    def submit(self, source: Any) -> "Future[Answer]":
        """Begins to detect objects in an image; its future raises what ``decode`` does."""
        future: Future[Answer] = Future()
        self._waiting.put((source, future))
        return future

    def close(self) -> None:
        """Computes what waits, and ends the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            first = self._waiting.get()
            taken: deque[Future[Answer]] = deque()
            sources = self._until_idle(first, taken)
            pipeline = self._batched
            if self._waiting.empty() and not self._tile:
                pipeline, sources = self._single, islice(sources, 1)
            try:
                for result in self._stream(pipeline, sources):
                    future = taken.popleft()
                    if result.error is not None:
                        future.set_exception(result.error)
                    else:
                        future.set_result(Answer(result.detections, result.image.shape[:2]))
            except Exception as error:  # fail this batch only; keep serving
                for future in taken:
                    future.set_exception(error)

    def _until_idle(self, first: Any, taken: deque) -> Iterator[Any]:
        """Yields the images that wait, from the first on, and appends their futures."""
        request = first
        while request is not None:
            source, future = request
            if future.set_running_or_notify_cancel():
                taken.append(future)
                yield source
            try:
                request = self._waiting.get_nowait()
            except Empty:
                return
        self._closing = True

    def _stream(self, pipeline: Pipeline, sources: Iterator[Any]) -> Iterator[Any]:
        if self._tile:
            return stream_tiles(pipeline, sources, self._tile, self._tile_overlap, self._decode)
        return stream_results(pipeline, sources, self._decode)
