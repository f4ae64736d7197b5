"""Detection in many images: decoded ahead, batched by padded size, returned in order."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from mrcnn_jax.config import Experiment
from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import ImageLike, to_rgb
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.inference.program import compiled, explaining_exhaustion
from mrcnn_jax.structures import Predictions
from mrcnn_jax.typing import Float, UInt8

Size = tuple[int, int]
Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
_WAITING_BYTES = 2**27
"""Memory of the decoded images beyond which no more of them wait than necessary."""


class PreparedImage(NamedTuple):
    """An image as the network takes it; ``error`` says why it could not be read."""

    source: Any
    image: UInt8[np.ndarray, "H W 3"] | None = None
    size: Size = (0, 0)  # before padding
    padded: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"] | None = None
    error: InputError | None = None

    @property
    def bytes(self) -> int:
        """The memory of the image as given."""
        return 0 if self.image is None else self.image.nbytes


class StreamResult(NamedTuple):
    """The detections in one image of a stream, or the reason for which there are none."""

    source: Any  # as it was given
    image: UInt8[np.ndarray, "H W 3"] | None
    detections: Detections | None
    error: InputError | None


class BatchScheduler:
    """Collects images of equal padded size into batches and gives their results back in order.

    At most ``8 * batch_size`` images wait, or ``2 * batch_size`` of large ones: the batch of the oldest one
    is then run incomplete, so that an image of a rare size delays the others, and takes memory, only for so
    long.

    Args:
        start: begins to compute a batch of prepared images, and returns a function that waits for it and
            returns their detections. The next batch begins before it is called, so that the host works
            while the device computes.
        batch_size: maximum number of images of a batch.
    """

    def __init__(
        self, start: Callable[[list[PreparedImage]], Callable[[], list[Detections]]], batch_size: int
    ):
        self._start, self._batch_size = start, batch_size
        self._groups: dict[Any, list[tuple[int, PreparedImage]]] = defaultdict(list)
        self._running: tuple[list[tuple[int, PreparedImage]], Callable[[], list[Detections]]] | None = None
        self._ready: dict[int, StreamResult] = {}
        self._added = self._returned = 0

    def add(self, prepared: PreparedImage) -> None:
        """Adds the next image, and runs a batch if one is due."""
        number, self._added = self._added, self._added + 1
        if prepared.error is not None:
            self._ready[number] = StreamResult(prepared.source, None, None, prepared.error)
            return
        key = prepared.padded.shape
        self._groups[key].append((number, prepared))
        if len(self._groups[key]) == self._batch_size:
            self._run(key)
        elif self._added - self._returned > (2 if self._are_large() else 8) * self._batch_size:
            self._run_oldest()

    def results(self, finish: bool = False) -> Iterator[StreamResult]:
        """Yields the results that are next in order; all that are left if ``finish``."""
        while finish and self._groups:
            self._run_oldest()
        if finish:
            self._collect()
        while self._returned in self._ready:
            yield self._ready.pop(self._returned)
            self._returned += 1

    def _are_large(self) -> bool:
        waiting = (prepared.bytes for group in self._groups.values() for _, prepared in group)
        return sum(waiting) > _WAITING_BYTES

    def _run_oldest(self) -> None:
        if self._groups:  # otherwise the oldest image is being computed
            self._run(min(self._groups, key=lambda key: self._groups[key][0][0]))

    def _run(self, key: Any) -> None:
        batch = self._groups.pop(key)
        computing = batch, self._start([prepared for _, prepared in batch])
        self._collect()
        self._running = computing

    def _collect(self) -> None:
        if self._running is None:
            return
        batch, wait = self._running
        self._running = None
        for (number, prepared), detections in zip(batch, wait(), strict=True):
            self._ready[number] = StreamResult(prepared.source, prepared.image, detections, None)


class Pipeline:
    """The steps from images to detections: decode and resize, compute, convert to pixels of the image.

    Args:
        experiment: of the detector.
        variables: of its model, on the device.
        class_names: carried along.
        batch_size: images that are computed at once.
        programs: directory of stored programs, if any.
    """

    def __init__(
        self, experiment: Experiment, variables: dict[str, Any], class_names: tuple[str, ...],
        batch_size: int = 1, programs: Any = None,
    ):  # fmt: skip
        self.experiment, self.batch_size = experiment, batch_size
        self._variables, self._class_names = variables, class_names
        self._predict = compiled(experiment.model, experiment.train.dtype, directory=programs)

    def prepare(self, source: ImageLike) -> PreparedImage:
        """Decodes and resizes an image; raises InputError for what is none."""
        image, conventions = to_rgb(source), self.experiment.model.conventions
        size, padded = inference_sizes(*image.shape[:2], self.experiment.data, conventions)
        return PreparedImage(source, image, size, resize_and_pad(image, size, padded, conventions))

    def start(self, batch: list[PreparedImage]) -> Callable[[], list[Detections]]:
        """Begins to compute a batch of one padded size; returns a function that waits for its detections."""
        images = np.zeros((self.batch_size, *batch[0].padded.shape), batch[0].padded.dtype)
        sizes = np.full((self.batch_size, 2), images.shape[1:3], np.int32)
        for slot, prepared in enumerate(batch):
            images[slot], sizes[slot] = prepared.padded, prepared.size
        with explaining_exhaustion():
            computing = self._predict(self._variables, images, sizes)

        def wait() -> list[Detections]:
            with explaining_exhaustion():
                predictions = jax.device_get(computing)
            return [self._convert(predictions.image(slot), one) for slot, one in enumerate(batch)]

        return wait

    def _convert(self, predictions: Predictions, prepared: PreparedImage) -> Detections:
        original, model = prepared.image.shape[:2], self.experiment.model
        return to_detections(predictions, prepared.size, original, model, self._class_names)


def stream_results(pipeline: Pipeline, images: Iterable[ImageLike]) -> Iterator[StreamResult]:
    """Yields the result of each image in order; the next images are decoded while the device computes."""

    def read(source):
        try:
            return pipeline.prepare(source)
        except InputError as error:
            return PreparedImage(source, error=error)

    scheduler, threads = BatchScheduler(pipeline.start, pipeline.batch_size), pipeline.experiment.data.threads
    for prepared in prefetch(read, images, pipeline.batch_size, threads, lambda prepared: prepared.bytes):
        scheduler.add(prepared)
        yield from scheduler.results()
    yield from scheduler.results(finish=True)


def prefetch(
    function: Callable[[Item], Prepared], items: Iterable[Item], ahead: int, threads: int,
    bytes_of: Callable[[Prepared], int],
) -> Iterator[Prepared]:  # fmt: skip
    """Yields ``function`` of each item in order, computed by threads in advance.

    Args:
        function: of an item.
        items: read as far as it is needed.
        ahead: number of items in advance. If results are small, there are up to four more for each thread,
            which even out that some items take longer than others.
        threads: number of threads.
        bytes_of: memory of a result.
    """
    largest, more = 1, 0
    with ThreadPoolExecutor(threads) as executor:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(executor.submit(function, item))
                while len(waiting) > ahead + more:
                    result = waiting.popleft().result()
                    largest = max(largest, bytes_of(result))
                    more = min(4 * threads, _WAITING_BYTES // largest)
                    yield result
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
