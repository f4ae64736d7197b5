"""Files that are written whole or not at all."""

import json

import pytest

from mrcnn_jax.atomic_io import replacing, write_json


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
