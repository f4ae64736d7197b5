"""Weight files for tests of their readers."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.readers import read_tensors, write_tensors

WRITTEN = [".npz", ".safetensors", ".pth", ".pt"]
READ = [*WRITTEN, ".pkl"]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "backbone.conv1.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "bn.num_batches_tracked": np.array(12, np.int64),
        "file": np.zeros((0, 3), np.float32),
        "allow_pickle": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
        "a/b c.\u20ac": np.int32([[1, -2]]),
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        isinstance(a[n], np.ndarray)
        and a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and a[n].tobytes() == b[n].tobytes()
        for n in a
    )


def pickled(folder: Path, content, protocol: int = 2) -> Path:
    (folder / "weights.pkl").write_bytes(pickle.dumps(content, protocol))
    return folder / "weights.pkl"


def write(path: Path, content: dict) -> None:
    """As ``write_tensors``, but .pkl files too."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        write_tensors(path, content)


def assert_refused(path: Path, reason: str = "") -> None:
    with pytest.raises(InputError, match=reason or None) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 600


class Harmful:
    def __reduce__(self):
        return os.system, ("echo > ran",)
