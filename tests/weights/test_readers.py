"""Weight files are written and read back, and checkpoints are unwrapped."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from weight_files import READ, WRITTEN, assert_refused, pickled, same, tensors, write

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.readers import read_tensors, write_tensors


@pytest.mark.parametrize("suffix", READ)
def test_read_tensors_returns_what_was_written(suffix, tmp_path):
    path = tmp_path / "new" / "folder" / f"weights{suffix}"
    path.parent.mkdir(parents=True) if suffix == ".pkl" else None
    write(path, tensors())
    assert same(read_tensors(path), tensors())
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_write_tensors_normalises_layout_and_dtype(suffix, tmp_path):
    values = np.float32([[1, 2, 3], [4, 5, -6]])
    given = {
        "transposed": values.T,
        "fortran": np.asfortranarray(values),
        "reversed": values[:, ::-1],
        "big endian": values.astype(">f4"),
        "big endian integers": values.astype(">i8"),
        "half": values.astype(np.float16),
        "brain": values.astype(ml_dtypes.bfloat16),
        "double": values.astype(np.float64),
        "number": 1.5,
        "scalar": np.float64(2.5),
        "counter": 3,
    }
    path = tmp_path / f"weights{suffix.upper()}"
    write_tensors(path, given)
    read = read_tensors(path)
    assert {name: array.dtype for name, array in read.items()} == {
        name: np.int64 if name in ("counter", "big endian integers") else np.float32 for name in given
    }
    for name, value in given.items():
        np.testing.assert_array_equal(read[name], np.asarray(value, np.float64))
        assert read[name].shape == np.shape(value) and read[name].dtype.isnative


@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("metadata", [{}, {"about": "it"}])
def test_write_tensors_lets_the_same_users_read_as_other_files(suffix, metadata, tmp_path):
    path, other = tmp_path / f"weights{suffix}", tmp_path / "other"
    before = os.umask(0o022)
    try:
        other.touch()
        write_tensors(path, tensors(), metadata if suffix == ".safetensors" else {})
    finally:
        os.umask(before)
    assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize(
    "nested",
    [
        lambda w: w,
        lambda w: {"model": w, "__author__": "Detectron2", "matching_heuristics": True},
        lambda w: {"blobs": w, "cfg": "MODEL:\n  TYPE: generalized_rcnn\n"},
        lambda w: {"blobs": w | {"conv1_w_momentum": np.ones(3), "lr_momentum": "text"}, "cfg": ""},
        lambda w: {"state_dict": w, "epoch": 3},
        lambda w: {
            "model": w,
            "optimizer": {"state": {0: {"momentum_buffer": np.ones(3)}}},
            "iteration": 90_000,
        },
        lambda w: {"model": {"state_dict": w, "meta": None}},
        lambda w: w | {"weight_order": ["conv1_w", "conv1_b"]},
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_read_tensors_unwraps_checkpoints(nested, protocol, tmp_path):
    assert same(read_tensors(pickled(tmp_path, nested(tensors()), protocol)), tensors())


def test_tensors_may_be_named_like_wrappers(tmp_path):
    assert read_tensors(pickled(tmp_path, {"model": np.ones(2), "blobs": 3}))["model"].shape == (2,)


def test_read_tensors_names_everything_that_is_not_a_tensor(tmp_path):
    good = {"a": np.ones(2), "b": 1, "c": True, "d": np.float16(2)}
    assert same(
        read_tensors(pickled(tmp_path, good)),
        {"a": np.ones(2, "f4"), "b": np.array(1), "c": np.array(True), "d": np.array(2, "f4")},
    )
    bad = {"text": "x", "list": [1.0], "bytes": b"", "none": None, "dict": {"a": np.ones(2)}}
    assert_refused(
        pickled(tmp_path, good | bad), "named arrays of real numbers, unlike text, list, bytes, none, dict"
    )
    assert_refused(pickled(tmp_path, good | bad | {"long": 2**70, "tuple": ()}), "dict and 2 more")
    assert_refused(
        pickled(tmp_path, good | {1: np.ones(2), "weight_order": ["a", 1]}),
        "a name of type int, weight_order",
    )
    assert_refused(pickled(tmp_path, good | {"\x1b[2J" + "a" * 1000: None}), r"\\x1b\[2Ja{76}")


@pytest.mark.parametrize(
    "content, kind",
    [([np.ones(2)], "list"), (np.ones(2), "numpy.ndarray"), ("text", "str"), (None, "NoneType")],
)
def test_read_tensors_refuses_other_content_than_a_dict(content, kind, tmp_path):
    assert_refused(pickled(tmp_path, content), f"must hold a dict of tensors, not a {kind}")


def test_files_without_tensors_are_refused(tmp_path):
    assert_refused(pickled(tmp_path, {}), "has no tensors")
    assert_refused(pickled(tmp_path, {"blobs": {"a_momentum": np.ones(2)}}), "has no tensors")
    with pytest.raises(InputError, match="has no tensors"):
        write_tensors(tmp_path / "weights.npz", {})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(value, tmp_path):
    bad = {"good": np.ones(2), "first": np.array([1.0, value]), "second": np.float64(value)}
    assert_refused(pickled(tmp_path, bad), "finite in float32, unlike first, second")
    with pytest.raises(InputError, match="unlike first, second"):
        write_tensors(tmp_path / "weights.npz", bad)
    assert not (tmp_path / "weights.npz").exists()


@pytest.mark.parametrize("name", ["weights.txt", "weights", "weights.pth.zip", "weights.h5"])
def test_unknown_suffixes_are_not_written(name, tmp_path):
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(
        InputError, match="suffix of weights to write must be one of .pth, .pt, .safetensors, .npz$"
    ):
        write_tensors(tmp_path / name, tensors())
    assert (tmp_path / name).read_bytes() == b"content"


def test_write_tensors_refuses_pickles(tmp_path):
    with pytest.raises(InputError, match="must be one of .pth, .pt, .safetensors, .npz$"):
        write_tensors(tmp_path / "weights.pkl", tensors())
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_read_tensors_reports_missing_permission(tmp_path):
    path = pickled(tmp_path, tensors())
    path.chmod(0)
    assert_refused(path, "cannot be read: Permission denied")


@pytest.mark.parametrize("suffix", WRITTEN)
def test_write_tensors_replaces_a_file_only_when_complete(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"weights{suffix}"
    write_tensors(path, {"a": np.ones(2)})

    def fail(self, target):
        assert self.stat().st_size > 100 and Path(target) == path
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(InputError, match="cannot be written: No space left on device"):
            write_tensors(path, tensors())
    assert os.listdir(tmp_path) == [path.name] and read_tensors(path).keys() == {"a"}
    write_tensors(path, tensors())
    assert os.listdir(tmp_path) == [path.name] and same(read_tensors(path), tensors())


@pytest.mark.parametrize("suffix", WRITTEN)
def test_write_tensors_reports_unwritable_places(suffix, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / f"folder{suffix}").mkdir()
    for path in (tmp_path / "file" / f"weights{suffix}", tmp_path / f"folder{suffix}"):
        with pytest.raises(InputError, match="cannot be written: .+"):
            write_tensors(path, tensors())
    assert sorted(os.listdir(tmp_path)) == ["file", f"folder{suffix}"]


@pytest.mark.parametrize(
    "value", ["text", None, [1.0], np.array(["a"]), np.array([1j]), np.array([None]), b""]
)
def test_write_tensors_refuses_other_values(value, tmp_path):
    with pytest.raises(InputError, match="unlike bad"):
        write_tensors(tmp_path / "weights.npz", {"good": np.ones(2), "bad": value})
    assert not os.listdir(tmp_path)
