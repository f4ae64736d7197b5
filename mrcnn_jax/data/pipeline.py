"""Batches of a data set with Grain: deterministic under a seed, sharded by process, resumable at any step."""

import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache

import grain
import numpy as np
from jaxtyping import Float, Int

from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.data.augment.copy_paste import Scene
from mrcnn_jax.data.augment.example import Render, training_example
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.image_sampling import sample_counts, sampling_weights
from mrcnn_jax.data.mixture import Mixture
from mrcnn_jax.data.transforms import is_portrait
from mrcnn_jax.errors import InputError, TooManyUnreadableError
from mrcnn_jax.structures import Batch, BatchInfo, Example


class BatchPlan:
    """Assignment of images to global batches, a function of the seed alone.

    All images of a batch share an orientation, so that they share a padded size on every process, because
    the devices of a pod must run the same program at the same step. Landscape and portrait images are two
    endless streams, each a new permutation in every epoch, cut into batches; an epoch is then a shuffled
    sequence of the batches that begin in it. No image is dropped, and none is repeated to fill a batch.

    With weights, an image comes as often in an epoch as its weight says on average (``sample_counts``).
    """

    def __init__(
        self, sizes: Int[np.ndarray, "N 2"], batch: int, seed: int,
        weights: Float[np.ndarray, "N"] | None = None,
    ):  # fmt: skip
        portrait, drawn = is_portrait(sizes), np.ones(len(sizes)) if weights is None else weights
        streams = np.flatnonzero(~portrait & (drawn > 0)), np.flatnonzero(portrait & (drawn > 0))
        self.streams = [indices for indices in streams if len(indices)]
        self.lengths = [max(1, round(float(drawn[indices].sum()))) for indices in self.streams]
        self.batch, self.seed, self.images, self._weights = batch, seed, sum(self.lengths), weights
        self._permutation = lru_cache(8)(self._permutation)
        self._order = lru_cache(8)(self._order)

    def record_index(self, step: int, position: int) -> int:
        """Returns the image at a position of a step's global batch."""
        epoch = max(0, step * self.batch // self.images - 1)
        while self._batches_before(epoch + 1) <= step:
            epoch += 1
        stream, number = self._order(epoch)[step - self._batches_before(epoch)]
        turn, place = divmod(number * self.batch + position, self.lengths[stream])
        return int(self._permutation(stream, turn)[place])

    def with_replacements(self, record: int) -> Iterator[int]:
        """Yields a record and its replacements if unreadable: the next of its orientation, cyclically."""
        yield record
        stream = next(indices for indices in self.streams if record in indices)
        yield from np.roll(stream, -1 - np.searchsorted(stream, record))[:-1].tolist()

    def _batches_before(self, epoch):
        return sum(epoch * length // self.batch for length in self.lengths)

    def _order(self, epoch):
        batches = [
            (stream, number)
            for stream, length in enumerate(self.lengths)
            for number in range(epoch * length // self.batch, (epoch + 1) * length // self.batch)
        ]
        order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(batches))
        return [batches[index] for index in order]

    def _permutation(self, stream, turn):
        random, indices = np.random.default_rng([self.seed, 2, stream, turn]), self.streams[stream]
        if self._weights is not None:
            indices = np.repeat(
                indices, sample_counts(self._weights[indices], self.lengths[stream], random)
            )
        return random.permutation(indices)


class UnreadableImages:
    """Unreadable training images that were replaced; loading threads add them, the loop reports them.

    Attributes:
        limit: maximum number of them.
        messages: error message by index of the record.
    """

    def __init__(self, limit: int):
        self.limit, self.messages = limit, {}
        self._reported, self._lock = 0, threading.Lock()

    def add(self, record: int, error: InputError) -> None:
        """Adds an image; raises TooManyUnreadableError beyond the limit, which ends the iteration."""
        with self._lock:
            self.messages.setdefault(record, str(error))
            count = len(self.messages)
        if count > self.limit:
            found = f"{count} training images are unreadable"
            limit = f"data.max_unreadable_images is {self.limit}"
            raise TooManyUnreadableError(f"{error}; {found}, but {limit}") from error

    def new_messages(self) -> list[str]:
        """Returns the messages that no call has returned yet."""
        with self._lock:
            new = list(self.messages.values())[self._reported :]
            self._reported += len(new)
        return new


def training_batches(
    source: DatasetSplit | Mixture, config: DataConfig, *, steps: int, images_per_process: int, seed: int,
    process: int = 0, processes: int = 1, start: int = 0, masks: bool = True,
    unreadable: UnreadableImages | None = None, conventions: Conventions = OURS,
) -> grain.DatasetIterator:  # fmt: skip
    """Returns an iterator over the (Batch, BatchInfo) of one process, for steps ``start`` to ``steps``.

    The batch of a step depends on the seed, the step and the size of the global batch alone, so a resumed run
    may have another number of processes. An unreadable image is replaced by the next of its orientation.

    Args:
        source: the split, or splits, to train on.
        config: image sizes, object slots, threads, and how often images are drawn.
        steps: number of steps of the whole run.
        images_per_process: images of a step in this process.
        seed: determines order and augmentation.
        process, processes: index of this process and number of processes.
        start: first step.
        masks: False leaves masks zero, which saves decoding them for a model without a mask branch.
        unreadable: collects unreadable images up to its limit; by default the first one ends the iteration.
        conventions: how images are resized.

    Raises:
        InputError: from the iterator, for more unreadable images than allowed.
    """
    unreadable = unreadable or UnreadableImages(0)
    batch, weights = images_per_process * processes, sampling_weights(source, config)
    plan = BatchPlan(source.sizes, batch, seed, weights)

    def load(index: int) -> tuple[Example, int, tuple[int, int]]:
        step, position = divmod(index, images_per_process)
        position += process * images_per_process
        for candidate in plan.with_replacements(plan.record_index(step, position)):
            random = np.random.default_rng([seed, 3, step, position])
            try:
                record, info = source[candidate], source.info
                example = training_example(record, info, config, random, masks, conventions, sample_other)
            except TooManyUnreadableError:
                raise  # because of an image to paste from
            except InputError as error:
                last = error
                unreadable.add(candidate, error)
            else:
                return example, record.image_id, (record.height, record.width)
        raise InputError(f"{last}; no other training image of its orientation is readable either") from last

    def sample_other(random: np.random.Generator, render: Render) -> Scene | None:
        index = int(random.integers(len(source)))
        try:
            return render(source[index])
        except InputError as error:
            unreadable.add(index, error)
            return None

    ahead = max(2 * images_per_process, config.threads)
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead)
    indices = grain.MapDataset.range(start * images_per_process, steps * images_per_process)
    return iter(indices.map(load).to_iter_dataset(options).batch(images_per_process, batch_fn=_collate))


def stack_examples(examples: Sequence[Example]) -> Batch:
    """Stacks examples of the same shapes to a batch."""
    return Batch(**{name: np.stack([getattr(one, name) for one in examples]) for name in vars(examples[0])})


def _collate(items: Sequence[tuple[Example, int, tuple[int, int]]]) -> tuple[Batch, BatchInfo]:
    examples, image_ids, sizes = zip(*items, strict=True)
    info = BatchInfo(np.array(image_ids, np.int64), np.array(sizes))
    return stack_examples(examples), info
