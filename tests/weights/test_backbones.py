"""Backbones are inferred from the shapes of a few of their tensors."""

import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.resnet import DEPTHS
from mrcnn_jax.weights.backbones import infer_backbone

NETWORKS = [
    ("resnet18", 1, 64),
    ("resnet34", 1, 64),
    ("resnet50", 1, 64),
    ("resnet101", 1, 64),
    ("resnet152", 1, 64),
    ("resnet50", 32, 4),
    ("resnet101", 32, 8),
    ("resnet101", 64, 4),
    ("resnet50", 1, 128),
    ("resnet101", 1, 128),
]


def tensors(name: str, groups: int = 1, group_width: int = 64, width: int = 64) -> dict[str, np.ndarray]:
    """Returns the convolutions of each block whose shapes matter, as torchvision names them."""
    inner = width * groups * group_width // 64
    shapes = {"stem.weight": (width, 3, 7, 7)}
    for stage, depth in enumerate(DEPTHS[name], start=2):
        channels = inner * 2 ** (stage - 2)
        for number in range(depth):
            shapes[f"res{stage}.{number}.conv2.weight"] = (channels, channels // groups, 3, 3)
            if name not in ("resnet18", "resnet34"):
                shapes[f"res{stage}.{number}.conv3.weight"] = (4 * width * 2 ** (stage - 2), channels, 1, 1)
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def infer(given) -> BackboneConfig:
    return infer_backbone(given, "stem.weight", lambda stage, number: f"res{stage}.{number}", "file")


@pytest.mark.parametrize("name, groups, group_width", NETWORKS)
@pytest.mark.parametrize("width", [64, 16])
def test_infer_backbone_determines_depth_and_widths(name, groups, group_width, width):
    expected = BackboneConfig(name=name, groups=groups, group_width=group_width, width=width)
    assert infer(tensors(name, groups, group_width, width)) == expected


@pytest.mark.parametrize("removed", ["res3.3", "res2.0.conv2", "stem"])
def test_infer_backbone_refuses_other_networks(removed):
    given = {name: tensor for name, tensor in tensors("resnet50").items() if not name.startswith(removed)}
    with pytest.raises(
        InputError, match="the backbone of file is none of resnet18, .*: blocks per stage are 3"
    ):
        infer(given)


def test_infer_backbone_counts_limited_numbers_of_blocks():
    many = {f"res2.{number}.conv2.weight": np.zeros((1, 1, 1, 1)) for number in range(150)}
    with pytest.raises(InputError, match="blocks per stage are 100 0 0 0"):
        infer(many)
