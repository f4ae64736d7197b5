"""Own files of weights: any detector goes out and comes back, bit for bit."""

import json

import numpy as np
import pytest
import safetensors.numpy
import tiny
from cli_inputs import call_cli
from variants import VARIANTS

import mrcnn_jax
from mrcnn_jax.data import shapes
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import read_weights
from mrcnn_jax.weights import own_file
from mrcnn_jax.weights.folder import Weights, write_model_folder


@pytest.fixture
def folder(tmp_path):
    """FCIS, which no other library has; with a path of this machine."""
    experiment = tiny.experiment(VARIANTS["FCIS"], {"dataset": "/data/mine"})
    variables = tiny.variables(experiment.model)
    write_model_folder(tmp_path / "live", Weights(experiment, shapes.INFO, variables))
    return tmp_path / "live"


def test_a_detector_comes_back(folder, tmp_path):
    file, out = tmp_path / "mine.safetensors", tmp_path / "back"
    status, printed = call_cli("export-weights", "safetensors", folder, file)
    assert status == 0 and f"mrcnn import-weights {file} --out weights/mine` makes a detector" in printed
    held = safetensors.numpy.load_file(file)
    assert held["params/backbone/stem/kernel"].shape == (7, 7, 3, 8)
    status, printed = call_cli("import-weights", file, "--out", out)
    assert status == 0 and "FCIS" not in printed and "assumed" not in printed.lower()
    before, after = read_weights(folder), read_weights(out)
    tiny.assert_same(after.variables, before.variables)
    assert after.info == before.info and after.experiment.model == before.experiment.model
    assert after.experiment.data.dataset == "mine"


def test_classes_can_be_named(folder, tmp_path):
    mrcnn_jax.export_weights("safetensors", folder, tmp_path / "mine.safetensors")
    names = [f"class {number}" for number in range(7)]
    mrcnn_jax.import_weights(tmp_path / "mine.safetensors", tmp_path / "back", classes=names)
    assert list(read_weights(tmp_path / "back").info.category_names) == names


def test_mistakes_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"mine.npz: a file of the target safetensors must end in .safeten"):
        mrcnn_jax.export_weights("safetensors", folder, tmp_path / "mine.npz")
    with pytest.raises(InputError, match="to torchvision or safetensors, not to 'onnx'"):
        mrcnn_jax.export_weights("onnx", folder, tmp_path / "mine.safetensors")
    file = tmp_path / "mine.safetensors"
    own_file.write_own_file(file, read_weights(folder))
    with pytest.raises(InputError, match="holds a detector of mrcnn_jax, not one of torchvision"):
        mrcnn_jax.import_weights(file, tmp_path / "back", source="torchvision")
    arrays = safetensors.numpy.load_file(file)
    for metadata, fault in (
        ({"mrcnn_jax": "{"}, "is damaged: it does not describe a detector of mrcnn_jax"),
        ({"mrcnn_jax": json.dumps({"experiment": {"x": 1}, "dataset": {}})}, "x"),
        ({}, "is not a supported model"),
    ):
        safetensors.numpy.save_file(arrays, file, metadata)
        with pytest.raises(InputError, match=fault):
            mrcnn_jax.import_weights(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_missing_and_misshapen_arrays_are_listed(folder, tmp_path):
    weights, file = read_weights(folder), tmp_path / "mine.safetensors"
    weights.variables["params"]["backbone"]["stem"]["kernel"] = np.zeros((3, 3, 3, 8), np.float32)
    del weights.variables["params"]["rpn"]["conv1"]["bias"]
    own_file.write_own_file(file, weights)
    with pytest.raises(InputError, match="1 missing: params/rpn/conv1/bias; 1 of the wrong shape: params"):
        mrcnn_jax.import_weights(file, tmp_path / "back")
