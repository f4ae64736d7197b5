"""The history of a run, on disk and in a bucket."""

import json

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.checkpoint import run_directory
from mrcnn_jax.data.image_io import save_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.training.logging import MetricLogger

METRICS = {"segm": {"AP": 10.0, "AP50": 20.0, "AP75": None}}


def lines(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def test_entries_after_the_resumed_step_are_dropped(tmp_path):
    history = MetricLogger(epath.Path(tmp_path), 0)
    for step in (1, 2, 3):
        history.log(step, {"loss": 1.0})
    history.log_evaluation(2, METRICS)
    history.close()
    history = MetricLogger(epath.Path(tmp_path), 2)
    assert [line["step"] for line in history.lines] == [1, 2, 2] == [line["step"] for line in lines(tmp_path)]
    assert history.has_evaluation(2) and not history.has_evaluation(1)
    history.close()


def test_incomplete_line_is_dropped(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    history = MetricLogger(epath.Path(tmp_path), 5)
    history.log(2, {"loss": 1.0})
    history.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_disabled_logger_writes_nothing(tmp_path):
    history = MetricLogger(epath.Path(tmp_path), 0, enabled=False)
    history.log(1, {"loss": 1.0})
    history.log_evaluation(1, METRICS)
    history.close()
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bucket(monkeypatch):
    """A gs:// bucket in memory."""

    class Storage(MemoryFileSystem):
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.removeprefix("gs://"))

    monkeypatch.setattr(fsspec, "filesystem", lambda protocol, **settings: Storage())
    return epath.Path("gs://bucket/run")


def test_files_of_a_run_can_be_in_a_bucket(bucket):
    bucket.mkdir(parents=True)
    history = MetricLogger(bucket, 0)
    history.log(1, {"loss": 1.0})
    assert lines(bucket) == []  # written with the next checkpoint
    history.log_evaluation(1, METRICS)
    history.flush()
    assert [line["step"] for line in lines(bucket)] == [1, 1]
    history.close()
    write_json(bucket / "metrics.json", METRICS)
    save_image(bucket / "predictions.png", np.zeros((2, 2, 3), np.uint8))
    assert json.loads((bucket / "metrics.json").read_text()) == METRICS
    files = ["curves.png", "history.jsonl", "metrics.csv", "metrics.json", "predictions.png"]
    assert sorted(path.name for path in bucket.iterdir()) == files
    assert MetricLogger(bucket, 1).lines == history.lines


def test_missing_package_for_buckets_is_named(monkeypatch):
    def missing(protocol, **settings):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    monkeypatch.setattr("mrcnn_jax.paths.BUCKETS", ("gs", "s3"))
    with pytest.raises(InputError, match=r"^s3://bucket/run is in a bucket, .*\[gcs\].*gcsfs\)$"):
        run_directory("s3://bucket/run")  # not gs://, which epath has cached
