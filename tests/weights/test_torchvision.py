"""torchvision's models: inferred from the names and shapes of their tensors, and mapped completely."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from library_models import check_complete, read_arrays, variable_shapes, zero_tensors

from mrcnn_jax.config import (
    TORCHVISION,
    BackboneConfig,
    BoxHeadConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RPNConfig,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import torchvision
from mrcnn_jax.weights.import_export import identify_model
from mrcnn_jax.weights.param_map import check_tensors, collect_unused_rows, to_jax, to_source

MODELS = [
    "maskrcnn_resnet18_fpn",
    "keypointrcnn_resnet18_fpn",
    "fasterrcnn_resnet18_fpn_v2",
    "maskrcnn_resnet50_fpn_v2",
]
BACKBONES = ("resnet18", "resnet50")


def backbone_config(name: str, width: int = 16, **settings) -> BackboneConfig:
    return BackboneConfig(name=name, width=width, stride_in_1x1=False, **settings)


def model_config(name: str, num_classes: int = 80, width: int = 16) -> ModelConfig:
    """Returns the modules that torchvision's model has; the ResNet is narrow unless ``width`` is 64."""
    kind, network, _, *second = name.split("_")
    norm = "batch" if second else "none"
    tasks = {"fasterrcnn": (), "maskrcnn": ("masks",), "keypointrcnn": ("keypoints",)}[kind]
    heads = {"convolutions": 4, "fully_connected": 1} if second else {}
    backbone_norm = "batch" if second else "frozen"
    return ModelConfig(
        num_classes=num_classes,
        tasks=("boxes", *tasks),
        backbone=backbone_config(network, width, norm=backbone_norm, pyramid_norm=norm),
        rpn=RPNConfig(convolutions=2 if second else 1),
        box=BoxHeadConfig(norm=norm, **heads),
        mask=MaskHeadConfig(norm=norm),
        keypoint=KeypointHeadConfig(num_keypoints=17),
    )


def state_dict(name: str, width: int = 16) -> dict[str, np.ndarray]:
    """Returns the state dict of a model, all zero."""
    is_backbone = name in BACKBONES
    model = (
        ModelConfig(tasks=(), backbone=backbone_config(name, width))
        if is_backbone
        else model_config(name, width=width)
    )
    tensors = zero_tensors(model, torchvision.make_param_map)
    if is_backbone:
        tensors |= {"fc.weight": np.zeros((1000, 8), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    if is_backbone or name.endswith("v2"):
        tensors |= counters(tensors)
    return tensors


def counters(tensors):
    names = [name for name in tensors if name.endswith("running_var")]
    return {name.replace("running_var", "num_batches_tracked"): np.int64(0) for name in names}


@pytest.mark.parametrize("name", MODELS)
def test_detectors_are_identified(name):
    source, expected = identify_model("torchvision", state_dict(name), name), model_config(name)
    experiment, model = source.experiment, source.experiment.model
    second_generation = name.endswith("v2")
    assert experiment.name == name and not source.is_backbone
    assert model.conventions == TORCHVISION
    assert (model.tasks, model.num_classes) == (expected.tasks, 80)
    assert model.rpn.convolutions == expected.rpn.convolutions
    assert replace(model.backbone, norm_epsilon=1e-5, freeze_stages=2) == expected.backbone
    assert (model.backbone.norm_epsilon, model.backbone.freeze_stages) == (
        (1e-5, 0) if second_generation else (0.0, 2)
    )
    fields = ("convolutions", "fully_connected", "norm")
    assert [getattr(model.box, field) for field in fields] == [
        getattr(expected.box, field) for field in fields
    ]
    assert (model.mask.layers, model.mask.norm) == (4, expected.mask.norm)
    check_complete(source, name)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_are_identified(name):
    tensors = state_dict(name)
    source = identify_model("torchvision", tensors, name)
    assert source.is_backbone and source.experiment.model.backbone == backbone_config(name)
    assert source.unused.keys() == counters(tensors).keys()
    weights = {name for name in tensors if not name.startswith("fc.")} - source.unused.keys()
    assert source.tensors.keys() == weights
    check_complete(source, name)


def test_first_published_names_are_renamed():
    renamed = {
        "backbone.fpn.inner_blocks.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.layer_blocks.3.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.head.conv.weight": "rpn.head.conv.0.0.weight",
        "rpn.head.conv.bias": "rpn.head.conv.0.0.bias",
        "roi_heads.mask_head.mask_fcn1.weight": "roi_heads.mask_head.0.0.weight",
        "roi_heads.mask_head.mask_fcn4.bias": "roi_heads.mask_head.3.0.bias",
    }
    tensors = state_dict("maskrcnn_resnet18_fpn")
    others = {name: tensor for name, tensor in tensors.items() if name not in renamed.values()}
    weights = torchvision.normalize_state_dict(others | {old: tensors[new] for old, new in renamed.items()})
    assert weights.keys() == tensors.keys()
    assert all(weights[name] is tensors[name] for name in renamed.values())
    assert torchvision.normalize_state_dict(tensors).keys() == tensors.keys()


def test_prefix_of_distributed_training_is_dropped():
    tensors = state_dict("fasterrcnn_resnet18_fpn_v2")
    prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    source = identify_model("torchvision", prefixed, "file")
    assert source.experiment.name == "fasterrcnn_resnet18_fpn_v2"
    assert source.tensors.keys() | source.unused.keys() == tensors.keys() and source.unused


def test_counters_mean_trained_batch_norm():
    """First-generation detectors trained from scratch; in published ones norm is frozen, without epsilon."""
    tensors = state_dict("maskrcnn_resnet18_fpn")
    experiment = identify_model("torchvision", tensors | counters(tensors), "file").experiment
    backbone = experiment.model.backbone
    assert experiment.name == "maskrcnn_resnet18_fpn"
    assert (backbone.norm, backbone.norm_epsilon) == ("batch", 1e-5)
    assert (backbone.freeze_stages, backbone.pyramid_norm) == (0, "none")


def test_keypoints_belong_to_every_class():
    tensors = state_dict("keypointrcnn_resnet18_fpn")
    for part, rows in (("cls_score", 4), ("bbox_pred", 16)):
        for kind in ("weight", "bias"):
            name = f"roi_heads.box_predictor.{part}.{kind}"
            tensors[name] = tensors[name][:rows]
    tensors["roi_heads.keypoint_predictor.kps_score_lowres.weight"] = np.zeros((512, 5, 4, 4), np.float32)
    model = identify_model("torchvision", tensors, "file").experiment.model
    assert (model.num_classes, model.keypoint.classes) == (3, (0, 1, 2))
    assert (model.keypoint.num_keypoints, model.keypoint.layers) == (5, 8)


def test_other_aspect_ratios_must_be_given():
    """A file holds only the number of anchors."""
    tensors = state_dict("maskrcnn_resnet18_fpn")
    for part, rows in (("cls_logits", 5), ("bbox_pred", 20)):
        tensors[f"rpn.head.{part}.weight"] = np.zeros((rows, 256, 1, 1), np.float32)
        tensors[f"rpn.head.{part}.bias"] = np.zeros(rows, np.float32)
    source = identify_model("torchvision", tensors, "file")
    model = source.experiment.model
    param_map = source.make_param_map(model)
    shape = r"4 of the wrong shape: rpn.head.cls_logits.weight \[5, 256, 1, 1\] instead of \[3, "
    with pytest.raises(InputError, match=f"file .* {shape}.* 5 anchors per cell, not 3: .*aspect-ratios"):
        check_tensors(source.tensors, param_map, variable_shapes(model), "file")
    model = replace(model, rpn=replace(model.rpn, aspect_ratios=(0.25, 0.5, 1.0, 2.0, 4.0)))
    assert check_tensors(source.tensors, param_map, variable_shapes(model), "file") == []


def test_folded_batch_norm_is_unfolded(test_data):
    """A ResNet-18 in which four convolutions are missing."""
    tensors = read_arrays(test_data / "resnet18_partial" / "resnet18_imagenet_bnfolded_no_layer4_convs.npz")
    source = identify_model("torchvision", tensors, "file")
    model = source.experiment.model
    param_map, template = source.make_param_map(model), variable_shapes(model)
    assert model.backbone == backbone_config("resnet18", 64, norm_epsilon=0.0)
    missing = [f"layer4.{block}.conv{number}.weight" for block in (0, 1) for number in (1, 2)]
    assert check_tensors(source.tensors, param_map, template, "file", partial=True) == missing
    with pytest.raises(InputError, match=r"4 missing: layer4.0.conv1.weight.*--partial would initialise"):
        check_tensors(source.tensors, param_map, template, "file")
    variables = to_jax(source.tensors, param_map)
    frozen = variables["frozen"]["backbone"]
    norms = {
        "conv1": frozen["stem_norm"],
        "layer2.0.downsample.0": frozen["res3_0"]["shortcut_norm"],
        "layer3.1.conv2": frozen["res4_1"]["conv2_norm"],
    }
    for name, norm in norms.items():
        np.testing.assert_array_equal(norm["bias"], tensors[f"{name}.bias"])
        assert not norm["mean"].any() and (norm["scale"] == 1).all() and (norm["var"] == 1).all()
    stem = variables["params"]["backbone"]["stem"]["kernel"]
    np.testing.assert_array_equal(stem[1, 2, :, 5], tensors["conv1.weight"][5, :, 1, 2])


UNSUPPORTED = {
    "vgg": ["features.0.weight", "classifier.0.weight"],
    "ssd": ["backbone.features.0.weight", "backbone.extra.0.0.weight"],
    "fcn": ["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "classifier.0.weight"],
    "mobilenet": [
        "backbone.body.0.0.weight",
        "backbone.fpn.inner_blocks.0.0.weight",
        "rpn.head.cls_logits.weight",
    ],
    "other": ["weight"],
}
KINDS = {
    "vgg": "a MobileNet, EfficientNet or VGG",
    "ssd": "an SSD",
    "fcn": "a model of semantic segmentation",
    "mobilenet": "a detector on MobileNet",
    "other": "not a supported model: .* its first tensors are weight$",
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_other_models_are_refused(name):
    tensors = {name: np.zeros((4, 4, 1, 1), np.float32) for name in UNSUPPORTED[name]}
    with pytest.raises(InputError, match=f"^weights.pth is {KINDS[name]}") as error:
        identify_model("torchvision", tensors, "weights.pth")
    assert "Faster, Mask and Keypoint R-CNN" in str(error.value) and "\n" not in str(error.value)


def test_other_detectors_on_the_same_backbone_are_refused():
    tensors = state_dict("maskrcnn_resnet18_fpn")
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("backbone")}
    tensors["head.classification_head.conv.0.0.weight"] = np.zeros((8, 8, 3, 3), np.float32)
    with pytest.raises(InputError, match="retinanet.pth is a RetinaNet, which is not supported"):
        identify_model("torchvision", tensors, "retinanet.pth")


def test_backbones_of_other_depths_are_refused():
    tensors = state_dict("resnet18")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("layer3.1")}
    with pytest.raises(InputError, match="blocks per stage are 2 2 1 2"):
        identify_model("torchvision", tensors, "file")


def test_tensors_of_wrong_rank_are_refused():
    tensors = state_dict("resnet50") | {"layer1.0.conv2.weight": np.zeros(16, np.float32)}
    with pytest.raises(InputError, match="file holds tensors whose shapes do not fit their names"):
        identify_model("torchvision", tensors, "file")


@pytest.mark.parametrize(
    "name", ["maskrcnn_resnet18_fpn", "keypointrcnn_resnet18_fpn", "maskrcnn_resnet18_fpn_v2"]
)
def test_all_tensors_are_converted_and_restored(name):
    model = model_config(name, num_classes=3)
    model = replace(
        model,
        backbone=replace(model.backbone, width=8, pyramid_channels=16),
        box=replace(model.box, channels=12, convolution_channels=16),
        mask=replace(model.mask, channels=16),
        keypoint=replace(model.keypoint, channels=8),
    )
    param_map, rng = torchvision.make_param_map(model), np.random.default_rng(0)
    zeros = zero_tensors(model, torchvision.make_param_map)
    tensors = {name: rng.standard_normal(tensor.shape, np.float32) for name, tensor in zeros.items()}
    ours, unused = to_jax(tensors, param_map), collect_unused_rows(tensors, param_map)
    deltas = "roi_heads.box_predictor.bbox_pred"
    assert set(unused) >= {f"{deltas}.weight", f"{deltas}.bias"}
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, variable_shapes(model))
    restored = to_source(ours, param_map, unused)
    assert restored.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(restored[key], tensor, err_msg=key, strict=True)
