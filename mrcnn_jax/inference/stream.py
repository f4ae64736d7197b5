"""Detection in many images: decoded ahead, batched by padded size, returned in order."""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mrcnn_jax.data.transforms import inference_sizes, resize_and_pad
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import to_rgb
from mrcnn_jax.inference.postprocess import to_detections
from mrcnn_jax.inference.program import explaining_exhaustion, local_mesh
from mrcnn_jax.inference.tta import AugmentedModel, ScaledBatch, is_augmented, scaled_configs
from mrcnn_jax.structures import Predictions
from mrcnn_jax.typing import Bool, Float, UInt8

if TYPE_CHECKING:
    from mrcnn_jax.inference.detector import Detector

Size = tuple[int, int]
Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
_WAITING_BYTES = 2**27
"""Memory of the decoded images beyond which no more of them wait than necessary."""


class ScaledImage(NamedTuple):
    """An image as the network takes it."""

    size: Size  # before padding
    padded: UInt8[np.ndarray, "h w 3"] | Float[np.ndarray, "h w 3"]


class PreparedImage(NamedTuple):
    """An image at each scale (one without test-time augmentation); ``error`` says why it cannot be read."""

    source: Any
    image: UInt8[np.ndarray, "H W 3"] | None = None
    size: Size = (0, 0)  # resized, in whose pixels predictions are
    scaled: tuple[ScaledImage, ...] = ()
    error: InputError | None = None

    @property
    def bytes(self) -> int:
        """The memory of the image as given, and as resized for all scales but one."""
        given = 0 if self.image is None else self.image.nbytes
        return given + sum(one.padded.nbytes for one in self.scaled[1:])


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
        key = tuple(each.padded.shape for each in prepared.scaled)
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
        detector: whose experiment, weights and names are used.
        batch_size: images that are computed at once, on each device.
        all_devices: use all devices of this process instead of one.
        known: classes whose detections are kept; None keeps all.
    """

    def __init__(
        self, detector: "Detector", batch_size: int = 1, all_devices: bool = False,
        known: Bool[np.ndarray, "K"] | None = None,
    ):  # fmt: skip
        experiment, variables = detector.experiment, detector.variables
        self.experiment, self._class_names, self._known = experiment, detector.class_names, known
        self._layout: tuple[int, ...] = (batch_size,)
        all_devices = all_devices and not detector.single_device
        if all_devices:
            self._layout = jax.local_device_count(), batch_size
            variables = jax.device_put(variables, NamedSharding(local_mesh(), PartitionSpec()))
        self._variables, self._scales = variables, scaled_configs(experiment)
        if is_augmented(experiment):
            flip = detector.info.keypoint_flip
            self._predict = AugmentedModel(experiment, flip, all_devices, detector.programs)
        else:
            plain = detector.program(all_devices)
            self._predict = lambda variables, frame, batches: plain(variables, *batches[0])

    @property
    def batch_size(self) -> int:
        """Images of a batch, on all devices."""
        return math.prod(self._layout)

    def prepare(self, source: Any, decode: Callable[[Any], np.ndarray] = to_rgb) -> PreparedImage:
        """Decodes and resizes an image; raises InputError for what is none."""
        image, conventions = decode(source), self.experiment.model.conventions
        sizes = [inference_sizes(*image.shape[:2], data, conventions) for data in self._scales]
        scaled = tuple(ScaledImage(size, resize_and_pad(image, size, padded, conventions))
                       for size, padded in sizes)  # fmt: skip
        frame, _ = inference_sizes(*image.shape[:2], self.experiment.data, conventions)
        return PreparedImage(source, image, frame, scaled)

    def start(self, batch: list[PreparedImage]) -> Callable[[], list[Detections]]:
        """Begins to compute images of equal padded sizes; returns a function that waits for their detections.
        """
        frame = self._stack([np.array(one.size, np.int32) for one in batch], np.ones(2, np.int32))
        scales = zip(*(one.scaled for one in batch), strict=True)
        with explaining_exhaustion():
            computing = self._predict(self._variables, frame, [self._batch(scaled) for scaled in scales])

        def wait() -> list[Detections]:
            with explaining_exhaustion():
                predictions = jax.device_get(computing)
            if len(self._layout) > 1:
                predictions = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), predictions)
            if self._known is not None:
                valid = predictions.valid & self._known[predictions.classes]
                predictions = predictions.replace(valid=valid)
            return [self._convert(predictions.image(slot), one) for slot, one in enumerate(batch)]

        return wait

    def _batch(self, scaled: Sequence[ScaledImage]) -> ScaledBatch:
        padded = scaled[0].padded
        images = self._stack([one.padded for one in scaled], np.zeros_like(padded))
        sizes = [np.array(one.size, np.int32) for one in scaled]
        return ScaledBatch(images, self._stack(sizes, np.array(padded.shape[:2], np.int32)))

    def _stack(self, arrays: Sequence[np.ndarray], filler: np.ndarray) -> np.ndarray:
        """Stacks the arrays of a batch, completed by a filler."""
        whole = [*arrays, *[filler] * (self.batch_size - len(arrays))]
        return np.stack(whole).reshape(*self._layout, *filler.shape)

    def _convert(self, predictions: Predictions, prepared: PreparedImage) -> Detections:
        original, model = prepared.image.shape[:2], self.experiment.model
        return to_detections(predictions, prepared.size, original, model, self._class_names)


def stream_results(
    pipeline: Pipeline, images: Iterable[Any], decode: Callable[[Any], np.ndarray] = to_rgb
) -> Iterator[StreamResult]:
    """Yields the result of each image in order; the next images are decoded while the device computes.

    Args:
        pipeline: of the detector.
        images: their sources.
        decode: returns the pixels of a source, or raises InputError.
    """

    def read(source):
        try:
            return pipeline.prepare(source, decode)
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
