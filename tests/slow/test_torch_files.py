"""Files of PyTorch are read without it as it reads them, and what is written here is read there."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from weight_files import assert_refused, tensors

from mrcnn_jax.weights.readers import read_weights, write_tensors

PYTHON = os.environ.get("MRCNN_TORCHVISION_PYTHON")
needs_torch = pytest.mark.skipif(not PYTHON, reason="MRCNN_TORCHVISION_PYTHON is not set")
MAKE = """
import argparse, collections, sys, types, numpy, torch
from pathlib import Path
from torch import nn

class Harmful:
    def __reduce__(self):
        return __import__("os").system, ("echo > ran",)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.register_buffer("grid", torch.ones(2), persistent=False)

out, values = Path(sys.argv[1]), torch.arange(24.0).reshape(4, 6) - 7.25
attributed = values.clone()
attributed.note = "text"
state = nn.BatchNorm2d(2).state_dict() | {
    "half": values.half(), "brain": values.bfloat16(), "double": values.double(), "view": values.T,
    "strided": values[1::2, ::3], "shared": values[2:], "own": nn.Parameter(values), "attributed": attributed,
    "zero": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "truth": torch.tensor([True, False]),
    "expanded": torch.ones(3, 1).expand(3, 4), "long": torch.tensor([2**40]),
    "char": torch.tensor([-3]).char(), "short": torch.tensor([-3]).short(), "byte": torch.tensor([3]).byte(),
    "u16": torch.ones(3).to(torch.uint16),
}
net, other = Net(), torch.optim.Adam([nn.Parameter(values)])
other.param_groups[0]["lr"] = 1
ema = torch.optim.swa_utils.AveragedModel(net)
contents = {
    "plain": state,
    "script": {
        "model": state, "optimizer": other.state_dict(), "lr_scheduler": {"last_epoch": 3}, "epoch": 3,
        "args": argparse.Namespace(lr=0.1, path=Path("x"), device=torch.device("cpu"), kind=torch.float32),
    },
    "harmful": {"model": state, "extra": Harmful()},
    "whole": net,
    "ema": {"model": net.state_dict(), "model_ema": ema.state_dict()},
    "odd": {"a": values, "sparse": torch.eye(3).to_sparse()},
    "bits": {"a": torch.ones(2).to(torch.float8_e4m3fn)},
    "complex": {"a": torch.ones(2, dtype=torch.complex64)},
    "huge": {"a": torch.ones(1).expand(10**6, 10**6)},
}
for kind, zipped in (("zip", True), ("old", False)):
    for name, content in contents.items():
        torch.save(content, out / f"{name}_{kind}.pth", _use_new_zipfile_serialization=zipped)
torch.jit.script(nn.Linear(2, 2)).save(out / "compiled.pt")
plain = {name: tensor.detach() for name, tensor in state.items()}
wide = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in plain.items()}
numpy.savez(out / "state.npz", **wide)
numpy.savez(out / "net.npz", **{name: tensor.numpy() for name, tensor in net.state_dict().items()})
"""


def run_torch(program: str, *arguments: object) -> str:
    command = [PYTHON, "-W", "ignore", "-c", program, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    run_torch(MAKE, folder)
    return folder


def assert_equal(read: dict, file: Path) -> None:
    with np.load(file) as expected:
        assert read.keys() == set(expected)
        for name, array in read.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name, strict=True)


@needs_torch
@pytest.mark.parametrize("kind", ["zip", "old"])
@pytest.mark.parametrize("name", ["plain", "script", "harmful"])
def test_tensors_are_those_that_pytorch_reads(folder, name, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_equal(read_weights(folder / f"{name}_{kind}.pth").tensors, folder / "state.npz")
    assert not list(tmp_path.iterdir())  # nothing ran


@needs_torch
@pytest.mark.parametrize("kind", ["zip", "old"])
def test_modules_are_read_as_their_state(folder, kind):
    assert_equal(read_weights(folder / f"whole_{kind}.pth").tensors, folder / "net.npz")
    tensors, (note,) = read_weights(folder / f"ema_{kind}.pth")
    assert_equal(tensors, folder / "net.npz")
    assert note.endswith("--key model_ema imports those")
    averaged, _ = read_weights(folder / f"ema_{kind}.pth", "model_ema")
    assert {name.removeprefix("module.") for name in averaged} == {*tensors, "n_averaged"}


@needs_torch
@pytest.mark.parametrize("kind", ["zip", "old"])
@pytest.mark.parametrize(
    "name, reason",
    [("odd", r"unlike sparse \(sparse\)"), ("bits", "float8_e4m3fn"), ("huge", "larger than the file"),
     ("complex", "a cannot be read: a tensor is complex")],
)  # fmt: skip
def test_other_tensors_are_refused(folder, name, kind, reason):
    assert_refused(folder / f"{name}_{kind}.pth", reason)
    assert_refused(folder / "compiled.pt", "is a compiled model of PyTorch")


@needs_torch
def test_pytorch_reads_what_is_written(tmp_path):
    given = tensors() | {"view": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a" * 300: np.ones(3, "f4")}
    write_tensors(tmp_path / "weights.pth", given)
    program = """
import json, sys, torch
state = torch.load(sys.argv[1], weights_only=True)
print(json.dumps({name: [str(t.dtype), list(t.shape), t.tolist()] for name, t in state.items()}))
"""
    read = json.loads(run_torch(program, tmp_path / "weights.pth"))
    kinds = {"f": "torch.float32", "b": "torch.bool", "u": "torch.uint8"}
    expected = {
        name: [kinds.get(array.dtype.kind, f"torch.{array.dtype}"), list(array.shape), array.tolist()]
        for name, array in given.items()
    }
    assert read == expected
