"""Files that are written whole or not at all."""

import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from example_records import THINGS, record

from mrcnn_jax.atomic_io import naming, new_folder, replacing, require_new_folder, write_json
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.errors import InputError


def test_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "runs" / "metrics.json"
    metrics = {"segm": {"AP": 37.25, "APs": None}}
    write_json(path, metrics)
    with replacing(path) as temporary:
        temporary.write_text("half a")
        assert json.loads(path.read_text()) == metrics and temporary.suffix == ".json"
        write_json(temporary, metrics | {"bbox": {}})
    assert json.loads(path.read_text()) == metrics | {"bbox": {}}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_earlier_file_remains_when_the_block_raises(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": 1})
    with pytest.raises(ValueError):
        write_json(path, {"AP": float("nan")})
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half a")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"AP": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_is_written_whole_or_not_at_all(tmp_path, exists):
    folder = tmp_path / "out"
    if exists:
        (folder / ".folder.part/old").mkdir(parents=True)  # of a process that was killed
    with pytest.raises(OSError, match="No space left on device: '.*out'"), new_folder(folder) as partial:
        (partial / "half").touch()
        raise OSError(28, "No space left on device")  # by a library that does not name the file
    assert list(tmp_path.rglob("*")) == [folder] * exists
    require_new_folder(folder)
    with new_folder(folder) as partial:
        (partial / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]
    with pytest.raises(InputError, match="out is not an empty folder: choose another one$"):
        require_new_folder(folder)


@contextmanager
def files_of_at_most(size: int):
    """Limits the size of files, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_errors_of_a_full_disk_name_the_file(tmp_path):
    path = tmp_path / "metrics.json"
    with pytest.raises(OSError, match="File too large") as raised, files_of_at_most(1000):
        write_json(path, {"text": "a" * 5000})
    assert raised.value.filename == str(path) and list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="No space left on device") as raised, naming("data/set"):
        raise RuntimeError("write() failed: No space left on device; writing x")
    assert (raised.value.filename, raised.value.errno) == ("data/set", 28)
    with pytest.raises(RuntimeError, match="other"), naming("data/set"):
        raise RuntimeError("other")


def test_data_set_that_fills_the_disk_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    with pytest.raises(OSError, match="File too large") as raised, files_of_at_most(5000):
        write_dataset(tmp_path / "set", THINGS, {"train": [record(noise)] * 4})
    assert raised.value.filename == str(tmp_path / "set") and list(tmp_path.iterdir()) == []
