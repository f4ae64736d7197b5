"""Summaries follow the configuration; loading code is given for each generation and file format."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest

from mrcnn_jax.config import BackboneConfig, Experiment, ModelConfig, RPNConfig
from mrcnn_jax.weights.summary import (
    describe_assumptions,
    describe_conventions,
    torchvision_loading_code,
)


def test_conventions_follow_the_configuration():
    lines = describe_conventions(ModelConfig(tasks=("boxes", "keypoints")), Experiment().data)
    assert lines[1] == "backbone: frozen norm with epsilon 1e-05; stride in the 1x1 convolution"
    assert lines[2].endswith("area resizing, sizes rounded nearest, padded to one of two sizes")
    pool = "align, 2 samples per bin and axis, half-pixel centres"
    assert lines[4] == f"RoIs: boxes 7x7 {pool}; keypoints 14x14 {pool}"
    assert lines[6:] == ["keypoints: 17, scored by probability"]


def test_what_is_assumed_is_named_without_what_is_given():
    source = SimpleNamespace(experiment=Experiment(), is_backbone=False, known=("data",))
    rpn = RPNConfig(anchor_sizes=(8, 16, 32, 64, 128))
    sentence = describe_assumptions(source, Experiment(model=ModelConfig(rpn=rpn)))
    assumed = "aspect ratios (height / width) 0.5 1 2, norm with epsilon 1e-05; if it was trained with others"
    assert sentence == (f"assumed, as the file does not specify: {assumed}, give --model.rpn.aspect-ratios, "
                        "--model.backbone.norm-epsilon")  # fmt: skip


def test_loading_code_of_first_generation_sets_the_epsilon():
    backbone = BackboneConfig(name="resnet18", norm_epsilon=0.0)
    (build, load), fields = torchvision_loading_code(
        ModelConfig(num_classes=5, backbone=backbone), Path("mine.pth")
    )
    assert fields == ("model.backbone.norm_epsilon",)
    assert build == (
        "model = torchvision.models.detection.MaskRCNN(torchvision.models.detection.backbone_utils."
        'resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=lambda channels: '
        "torchvision.ops.FrozenBatchNorm2d(channels, eps=0)), num_classes=6)"
    )
    assert load == 'model.load_state_dict(torch.load("mine.pth", weights_only=True))'


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_loading_code_is_python_whatever_the_name_of_the_file(suffix):
    file = f'my "best" \\ müll{suffix}'
    (_, load), _ = torchvision_loading_code(ModelConfig(num_classes=5), Path(file))
    constants = [node.value for node in ast.walk(ast.parse(load)) if isinstance(node, ast.Constant)]
    assert file in constants


def test_loading_code_of_second_generation_calls_the_builder():
    backbone = BackboneConfig(norm="batch", pyramid_norm="batch", freeze_stages=0)
    model = ModelConfig(num_classes=7, tasks=("boxes",), backbone=backbone)
    (build, load), fields = torchvision_loading_code(model, Path("mine.safetensors"))
    assert fields == ()
    assert build == (
        "model = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights=None, "
        "weights_backbone=None, num_classes=8)"
    )
    assert load == 'model.load_state_dict(safetensors.torch.load_file("mine.safetensors"))'


@pytest.mark.parametrize("suffix", [".npz", ".NPZ"])
def test_loading_code_of_keypoints_gives_their_number(suffix):
    model = ModelConfig(num_classes=1, tasks=("boxes", "keypoints"))
    (build, load), _ = torchvision_loading_code(model, Path(f"k{suffix}"))
    assert build.endswith("eps=1e-05)), num_classes=2, num_keypoints=17)") and "numpy.load" in load
