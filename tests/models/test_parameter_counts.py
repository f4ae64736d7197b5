"""Numbers of parameters, against torchvision's and Detectron2's."""

import json

import jax
import jax.numpy as jnp
import pytest
from paths import GOLDEN

from mrcnn_jax.config import BackboneConfig, ModelConfig
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.presets import coco


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Parameters of torchvision's classification networks without the last layer, batch norm's vectors included.
@pytest.mark.parametrize(
    "name, groups, group_width, size",
    [
        ("resnet18", 1, 64, 11_176_512),
        ("resnet34", 1, 64, 21_284_672),
        ("resnet50", 1, 64, 23_508_032),
        ("resnet101", 1, 64, 42_500_160),
        ("resnet152", 1, 64, 58_143_808),
        ("resnet101", 32, 8, 86_742_336),
        ("resnet101", 64, 4, 81_406_272),
    ],
)
def test_backbone_size_is_the_published_networks(name, groups, group_width, size):
    config = BackboneConfig(name=name, groups=groups, group_width=group_width, norm="batch")
    variables = jax.eval_shape(ResNet(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert count(variables["params"]) == size


def parts_of(config: ModelConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Number of trained parameters and of frozen values in each part."""
    variables = jax.eval_shape(lambda: init_variables(make_model(config), jax.random.key(0)))
    assert set(variables) == {"params", "frozen"}
    return tuple(
        {name: count(part) for name, part in variables[kind].items()} for kind in ("params", "frozen")
    )


PERSON = ModelConfig(num_classes=1, tasks=("boxes", "keypoints"))


# Weights and biases by part are in golden/parameter_counts.json; Detectron2's state dict of R_50_FPN also has
# the four vectors of each of 53 frozen batch norms.
@pytest.mark.parametrize(
    "model, config",
    [
        ("d2_mask_rcnn_R_50_FPN", ModelConfig()),
        ("d2_mask_rcnn_R_50_C4", coco.mask_rcnn_r50_c4().model),
        ("d2_keypoint_rcnn_R_50_FPN", PERSON),
    ],
)
def test_parameter_counts_are_those_of_detectron2(model, config):
    expected = json.loads((GOLDEN / "parameter_counts.json").read_text())[model]
    trained, frozen = parts_of(config)
    assert trained == expected
    assert sum(frozen.values()) == 4 * 26_560


# The published classification networks without the vectors of their norms (two numbers per channel).
@pytest.mark.parametrize(
    "experiment, backbone, norms",
    [(coco.mask_rcnn_r101_fpn, 42_500_160, 52_672), (coco.mask_rcnn_x101_fpn, 81_406_272, 101_440)],
)
def test_a_deeper_backbone_changes_nothing_else(experiment, backbone, norms):
    trained, frozen = parts_of(experiment().model)
    assert sum(frozen.values()) == 4 * norms
    assert trained == parts_of(ModelConfig())[0] | {"backbone": backbone - 2 * norms}


def test_torchvision_has_parameters_of_one_more_class():
    """maskrcnn_resnet50_fpn of 90 classes and background has 44 401 393 parameters, of which 4 100 are box
    deltas and 257 the mask of the background, which we do not have."""
    assert sum(parts_of(ModelConfig(num_classes=90))[0].values()) == 44_401_393 - 4_100 - 257
