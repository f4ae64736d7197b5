"""Batches from a stored data set, with Grain: deterministic under a seed, sharded by process, resumable at any step."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import grain
import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.transforms import (
    decode_record,
    image_type,
    inference_sizes,
    is_portrait,
    resize_and_pad,
    training_example,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import BatchInfo


class BatchPlan:
    """Which image stands where in every global batch, as a function of the seed alone.

    All images of a batch share an orientation, so that they share a padded size, on every process: the devices of a pod must run the same
    program at the same step. Landscape and portrait images are two endless streams, each a new permutation in every epoch, cut into batches;
    an epoch is then a shuffled sequence of the batches that begin in it. Nothing is dropped and nothing is repeated to fill a batch.
    """

    def __init__(self, sizes: Int[np.ndarray, "N 2"], batch: int, seed: int):
        portrait = is_portrait(sizes)
        self.streams = [indices for indices in (np.flatnonzero(~portrait), np.flatnonzero(portrait)) if len(indices)]
        self.batch, self.seed, self.images = batch, seed, len(sizes)
        self._permutation = lru_cache(8)(self._permutation)
        self._order = lru_cache(8)(self._order)

    def record_index(self, step: int, position: int) -> int:
        """The image at a position of a step's global batch."""
        epoch = max(0, step * self.batch // self.images - 1)
        while self._batches_before(epoch + 1) <= step:
            epoch += 1
        stream, number = self._order(epoch)[step - self._batches_before(epoch)]
        turn, place = divmod(number * self.batch + position, len(self.streams[stream]))
        return int(self._permutation(stream, turn)[place])

    def candidates(self, record: int) -> Iterator[int]:
        """The record, and what takes its place where it cannot be read: the next ones of its orientation, from the last on to the first."""
        yield record
        stream = next(indices for indices in self.streams if record in indices)
        yield from np.roll(stream, -1 - np.searchsorted(stream, record))[:-1].tolist()

    def _batches_before(self, epoch):
        return sum(epoch * len(indices) // self.batch for indices in self.streams)

    def _order(self, epoch):
        batches = [
            (stream, number)
            for stream, indices in enumerate(self.streams)
            for number in range(epoch * len(indices) // self.batch, (epoch + 1) * len(indices) // self.batch)
        ]
        return [batches[index] for index in np.random.default_rng([self.seed, 1, epoch]).permutation(len(batches))]

    def _permutation(self, stream, turn):
        return np.random.default_rng([self.seed, 2, stream, turn]).permutation(self.streams[stream])


class UnreadableImages:
    """Training images that could not be read and gave way to others: the loading threads add them, the loop tells of them.

    Attributes:
        messages: what was wrong, by the index of the record.
    """

    def __init__(self, limit: int):
        self.limit, self.messages = limit, {}
        self._told, self._lock = 0, threading.Lock()

    def add(self, record: int, error: InputError) -> None:
        """Raises InputError where there are more than the limit, so that whoever waits for the batch halts."""
        with self._lock:
            self.messages.setdefault(record, str(error))
            count = len(self.messages)
        if count > self.limit:
            raise InputError(f"{error}; training images that cannot be read: {count}, and data.max_unreadable_images is {self.limit}") from error

    def news(self) -> list[str]:
        """The messages that no call has returned yet."""
        with self._lock:
            new = list(self.messages.values())[self._told :]
            self._told += len(new)
        return new


class _TrainingSource:
    """Random access to the examples of one process, in the order of the plan.

    An image that cannot be read is replaced by the next one of its orientation that can: which one that is depends on the data set alone.
    """

    def __init__(
        self, source: DatasetSplit, config: DataConfig, plan: BatchPlan, steps: int, images_per_process: int, process: int, masks: bool,
        skipped: UnreadableImages, conventions: Conventions,
    ):  # fmt: skip
        self.source, self.config, self.plan = source, config, plan
        self.steps, self.local, self.process = steps, images_per_process, process
        self.masks, self.skipped, self.conventions = masks, skipped, conventions

    def __len__(self):
        return self.steps * self.local

    def __getitem__(self, index):
        step, position = divmod(int(index), self.local)
        position += self.process * self.local
        for candidate in self.plan.candidates(self.plan.record_index(step, position)):
            random = np.random.default_rng([self.plan.seed, 3, step, position])
            try:
                record = self.source[candidate]
                example = training_example(record, self.source.info, self.config, random, self.masks, self.conventions)
            except InputError as error:
                last = error
                self.skipped.add(candidate, error)
            else:
                return example, BatchInfo(np.int64(record.image_id), np.array([record.height, record.width]), np.bool_(True))
        raise InputError(f"{last}; no other training image of its orientation can be read either") from last


def training_batches(
    source: DatasetSplit, config: DataConfig, *, steps: int, images_per_process: int, seed: int, process: int = 0, processes: int = 1, start: int = 0,
    masks: bool = True, skipped: UnreadableImages | None = None, conventions: Conventions = OURS,
) -> grain.DatasetIterator:  # fmt: skip
    """An iterator over (Batch, BatchInfo) of this process, for steps ``start`` to ``steps``.

    A step's batch depends on the seed, the step and the size of the global batch alone, so the step is the whole state of the iterator: a
    resumed run starts here where it stopped, on however many processes.

    Args:
        masks: False leaves the masks zero, which saves decoding them for a model that learns none.
        skipped: collects the images that cannot be read and are replaced, up to its limit; without it the first one ends the iteration.

    Raises:
        InputError: from the iterator, for more images that cannot be read.
    """
    plan = BatchPlan(source.sizes, images_per_process * processes, seed)
    examples = _TrainingSource(source, config, plan, steps, images_per_process, process, masks, skipped or UnreadableImages(0), conventions)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=max(2 * images_per_process, config.threads))
    remaining = grain.MapDataset.source(examples)[start * images_per_process :]
    return iter(remaining.to_iter_dataset(options).batch(images_per_process, batch_fn=_stack))


class EvaluationBatch(NamedTuple):
    """Images to be detected in; no annotations."""

    images: UInt8[np.ndarray, "B H W 3"] | Float[np.ndarray, "B H W 3"]
    sizes: Int[np.ndarray, "B 2"]
    info: BatchInfo


def evaluation_batches(
    source: DatasetSplit, config: DataConfig, images_per_batch: int, *, limit: int | None = None, process: int = 0, processes: int = 1,
    conventions: Conventions = OURS,
) -> Iterator[EvaluationBatch]:
    """Every image once (or the first ``limit``), grouped by padded size; the last batch of a group is filled up with zeros."""
    groups = defaultdict(list)
    for index, (height, width) in enumerate(source.sizes[:limit].tolist()):
        groups[inference_sizes(height, width, config, conventions)[1]].append(index)
    batches = [
        (padded, indices[start : start + images_per_batch])
        for padded, indices in sorted(groups.items())
        for start in range(0, len(indices), images_per_batch)
    ][process::processes]

    def load(batch):
        padded, indices = batch
        images = np.zeros((images_per_batch, *padded, 3), image_type(conventions))
        sizes = np.full((images_per_batch, 2), images.shape[1:3], np.int32)
        info = BatchInfo(np.zeros(images_per_batch, np.int64), np.ones((images_per_batch, 2), np.int64), np.arange(images_per_batch) < len(indices))
        for slot, index in enumerate(indices):
            record = source[index]
            image = decode_record(record)
            sizes[slot], _ = inference_sizes(*image.shape[:2], config, conventions)
            images[slot] = resize_and_pad(image, tuple(sizes[slot]), padded, conventions)
            info.image_ids[slot], info.original_sizes[slot] = record.image_id, image.shape[:2]
        return EvaluationBatch(images, sizes, info)

    options = grain.ReadOptions(num_threads=min(4, config.threads), prefetch_buffer_size=4)
    return iter(grain.MapDataset.source(batches).map(load).to_iter_dataset(options))


def _stack(examples):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *examples)
