"""Concurrent requests: batches, order, errors, and the end."""

import threading

import numpy as np
import pytest
from stub_pipeline import StubPipeline

from mrcnn_jax.errors import InputError
from mrcnn_jax.serving.batching import Batcher

LANDSCAPE, PORTRAIT = np.zeros((8, 12, 3), np.uint8), np.zeros((12, 8, 3), np.uint8)


class Gate:
    """Decodes nothing before it is opened; refuses None."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, source):
        self.reached.set()
        assert self.opened.wait(10)
        if source is None:
            raise InputError("no image")
        return source


@pytest.fixture
def waiting(monkeypatch):
    """``waiting(*sources)``: a batcher that has begun with one image while others wait; futures; batches."""
    monkeypatch.setattr("mrcnn_jax.serving.batching.Pipeline", StubPipeline)
    made = []

    def submit(*sources, batch_size=2):
        gate, batches = Gate(), []
        batcher = Batcher(batches, gate, batch_size)
        made.append(batcher)
        futures = [batcher.submit(LANDSCAPE)]
        assert gate.reached.wait(10)
        futures += [batcher.submit(source) for source in sources]
        gate.opened.set()
        return batcher, futures, batches

    yield submit
    for batcher in made:
        batcher.close()
        assert not batcher.is_running


def test_images_that_wait_are_batched_by_size_and_one_that_is_alone_is_not(waiting):
    _, futures, batches = waiting(*[LANDSCAPE, PORTRAIT, LANDSCAPE, PORTRAIT, LANDSCAPE])
    assert [future.result(10).size for future in futures] == [
        (8, 12), (8, 12), (12, 8), (8, 12), (12, 8), (8, 12)
    ]  # fmt: skip
    assert sorted(map(len, batches)) == [1, 1, 2, 2] and len(batches[0]) == 1


def test_errors_belong_to_their_images(waiting):
    _, (first, bad, last), _ = waiting(None, PORTRAIT)
    assert first.result(10).size == (8, 12) and last.result(10).size == (12, 8)
    with pytest.raises(InputError, match="no image"):
        bad.result(10)


def test_a_failure_of_the_device_does_not_end_the_service(waiting, monkeypatch):
    def fail(self, batch):
        raise RuntimeError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(StubPipeline, "start", fail)
        batcher, futures, _ = waiting(LANDSCAPE, PORTRAIT)
        for future in futures:
            with pytest.raises(RuntimeError, match="lost"):
                future.result(10)
    assert batcher.is_running and batcher.submit(PORTRAIT).result(10).size == (12, 8)


def test_what_waits_is_computed_before_the_end(waiting):
    batcher, futures, _ = waiting(*[LANDSCAPE] * 7)
    batcher.close()
    assert all(future.done() for future in futures)
    batcher._waiting.put(None)  # the fixture closes again


def test_tiles_are_found_in_whole_images(monkeypatch):
    monkeypatch.setattr("mrcnn_jax.serving.batching.Pipeline", StubPipeline)
    monkeypatch.setattr("mrcnn_jax.inference.tiles.join_tiles", lambda found, *_: found[0])
    batches: list = []
    batcher = Batcher(batches, lambda source: source, 4, tile=8, tile_overlap=0.0)
    assert batcher.submit(np.zeros((16, 16, 3), np.uint8)).result(10).size == (16, 16)
    assert [len(batch) for batch in batches] == [4]
    batcher.close()
