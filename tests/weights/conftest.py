"""Weights of a tiny detector of torchvision, and the directories that they are imported into."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_run
from cli_inputs import call_cli
from tiny_torchvision import CLASSES, FIELDS, MODEL

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.weights import torchvision
from mrcnn_jax.weights.param_map import collect_unused_rows, to_source
from mrcnn_jax.weights.readers import write_tensors


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """Returns a state dict of torchvision, with random rows of the background class."""
    param_map, variables = torchvision.make_param_map(MODEL), tiny.variables(MODEL)
    rows = collect_unused_rows(to_source(variables, param_map), param_map)
    rng = np.random.default_rng(0)
    return to_source(
        variables, param_map, {name: rng.standard_normal(row.shape, np.float32) for name, row in rows.items()}
    )


@pytest.fixture(scope="module")
def file(base, tensors) -> Path:
    write_tensors(base / "tv.safetensors", tensors)
    return base / "tv.safetensors"


@pytest.fixture(scope="module")
def imported(base, file) -> tuple[Path, str]:
    """The directory of imported weights, and what the import printed."""
    out = base / "tv"
    status, printed = call_cli(
        "import-weights", file, "--out", out, "--classes", *CLASSES, *FIELDS
    )
    assert status == 0
    return out, printed


@pytest.fixture(scope="module")
def backbone(base, tensors) -> Path:
    """The directory of a backbone alone."""
    prefix, out = torchvision.BACKBONE_PREFIX, base / "r18"
    weights = {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }
    write_tensors(base / "r18.npz", weights)
    status, printed = call_cli("import-weights", "torchvision", base / "r18.npz", "--out", out)
    assert status == 0
    number = len(torchvision.make_param_map(ModelConfig(tasks=(), backbone=MODEL.backbone)))
    assert f"r18.npz is resnet18: {number} tensors, 0.2 M parameters; a backbone alone.\n" in printed
    assert "backbone: frozen norm with epsilon 1e-05\n" in printed
    assert "anchors" not in printed and "predict" not in printed
    command = "mrcnn train mask_rcnn_r50_fpn --data.dataset data/mine --train.init-from"
    assert printed.endswith(f"  {command} {out} --model.backbone.name resnet18 --model.backbone.width 8\n")
    return out


@pytest.fixture(scope="module")
def dataset(base, tmp_path_factory) -> Path:
    """A data set of seven classes, with images of one size, for which one program suffices."""
    source = tiny_run.dataset(tmp_path_factory.getbasetemp())
    splits = {split: open_dataset(source, split) for split in ("train", "validation")}
    wide = {split: [record for record in records if record.width == 96] for split, records in splits.items()}
    write_dataset(base / "wide-shapes", splits["train"].info, wide)
    return base / "wide-shapes"
