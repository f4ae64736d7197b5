"""torchvision's names: models are recognised by them alone, each tensor has its one place, and what is no known model is refused in a sentence."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from library_models import arrays

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RPNConfig,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.weights import param_map as table
from mrcnn_jax.weights import torchvision
from mrcnn_jax.weights.import_export import recognise
from mrcnn_jax.weights.param_map import Entry, check, flattened, to_ours, to_theirs, unused_rows

MODELS = [
    "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet18_fpn",
]  # fmt: skip
BACKBONES = {
    "resnet18": {}, "resnet34": {}, "resnet50": {}, "resnet101": {}, "resnet152": {},
    "resnext50_32x4d": {"groups": 32, "group_width": 4}, "resnext101_32x8d": {"groups": 32, "group_width": 8},
    "resnext101_64x4d": {"groups": 64, "group_width": 4}, "wide_resnet50_2": {"group_width": 128}, "wide_resnet101_2": {"group_width": 128},
}  # fmt: skip


NARROW = 16


def backbone(name: str, width: int = NARROW, **settings) -> BackboneConfig:
    plain = name.replace("resnext", "resnet").removeprefix("wide_").partition("_")[0]
    return BackboneConfig(name=plain, width=width, stride_in_1x1=False, **BACKBONES[name], **settings)


def model_config(name: str, classes: int = 80, width: int = NARROW) -> ModelConfig:
    """The parts that torchvision's model has."""
    kind, network, _, *second = name.split("_")
    norm = "batch" if second else "none"
    return ModelConfig(
        num_classes=classes,
        tasks=("boxes", *{"fasterrcnn": (), "maskrcnn": ("masks",), "keypointrcnn": ("keypoints",)}[kind]),
        backbone=backbone(network, width, norm="batch" if second else "frozen", pyramid_norm=norm),
        rpn=RPNConfig(convolutions=2 if second else 1),
        box=BoxHeadConfig(norm=norm, **({"convolutions": 4, "fully_connected": 1} if second else {})),
        mask=MaskHeadConfig(norm=norm), keypoint=KeypointHeadConfig(num_keypoints=17),
    )  # fmt: skip


@cache
def shapes(model: ModelConfig):
    return jax.eval_shape(lambda: initialise(MaskRCNN(model), jax.random.key(0)))


def nothing(name: str, width: int = NARROW) -> dict[str, np.ndarray]:
    """Zeros as the state dict of a model; its ResNet is narrow, to be quick."""
    model = ModelConfig(tasks=(), backbone=backbone(name, width)) if name in BACKBONES else model_config(name, width=width)
    names = torchvision.table(model)
    tensors = to_theirs(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model)), names)
    if name in BACKBONES:
        tensors |= {"fc.weight": np.zeros((1000, 8), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    if name in BACKBONES or name.endswith("v2"):
        tensors |= counters(tensors)
    return tensors


def counters(tensors):
    return {name.replace("running_var", "num_batches_tracked"): np.int64(0) for name in tensors if name.endswith("running_var")}


def paths(tree):
    return {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", MODELS)
def test_detectors_are_recognised(name):
    found, expected = recognise("torchvision", nothing(name), name), model_config(name)
    experiment, model = found.experiment, found.experiment.model
    assert experiment.name == name and not found.backbone_alone
    assert (model.tasks, model.num_classes, model.rpn.convolutions) == (expected.tasks, 80, expected.rpn.convolutions)
    assert replace(model.backbone, norm_epsilon=1e-5, freeze_stages=2) == expected.backbone
    assert (model.box.convolutions, model.box.fully_connected, model.box.norm, model.mask.layers, model.mask.norm) == (
        expected.box.convolutions, expected.box.fully_connected, expected.box.norm, 4, expected.mask.norm,
    )  # fmt: skip
    assert (model.backbone.norm_epsilon, model.backbone.freeze_stages) == ((1e-5, 0) if name.endswith("v2") else (0.0, 2))
    assert check(found.tensors, found.table(model), shapes(expected), name) == []
    assert {entry.path for entry in found.table(model).values()} == paths(shapes(expected))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet152", "resnext101_64x4d", "wide_resnet50_2"])
def test_backbones_are_recognised(name):
    tensors = nothing(name)
    found = recognise("torchvision", tensors, name)
    assert found.backbone_alone and found.experiment.model.backbone == backbone(name)
    assert found.tensors.keys() == {name for name in tensors if not name.startswith("fc.") and not name.endswith("num_batches_tracked")}
    assert found.unused.keys() == counters(tensors).keys()
    assert check(found.tensors, found.table(found.experiment.model), shapes(found.experiment.model), name) == []


def test_old_names():
    old = {
        "backbone.fpn.inner_blocks.0.weight": "backbone.fpn.inner_blocks.0.0.weight",
        "backbone.fpn.layer_blocks.3.bias": "backbone.fpn.layer_blocks.3.0.bias",
        "rpn.head.conv.weight": "rpn.head.conv.0.0.weight",
        "rpn.head.conv.bias": "rpn.head.conv.0.0.bias",
        "roi_heads.mask_head.mask_fcn1.weight": "roi_heads.mask_head.0.0.weight",
        "roi_heads.mask_head.mask_fcn4.bias": "roi_heads.mask_head.3.0.bias",
    }
    tensors = nothing("maskrcnn_resnet50_fpn")
    new = {name: tensor for name, tensor in tensors.items() if name not in old.values()}
    renamed = torchvision.modern(new | {name: tensors[modern] for name, modern in old.items()})
    assert renamed.keys() == tensors.keys()
    assert all(renamed[name] is tensors[name] for name in old.values())
    assert torchvision.modern(tensors).keys() == tensors.keys()


def test_a_prefix_of_several_devices_is_dropped():
    tensors = nothing("fasterrcnn_resnet50_fpn_v2")
    found = recognise("torchvision", {f"module.{name}": tensor for name, tensor in tensors.items()}, "file")
    assert found.experiment.name == "fasterrcnn_resnet50_fpn_v2"
    assert found.tensors.keys() | found.unused.keys() == tensors.keys() and found.unused


def test_batch_norm_that_was_not_frozen_has_counters():
    """A detector of the first generation that was trained from scratch; the published ones have frozen norm without epsilon."""
    tensors = nothing("maskrcnn_resnet50_fpn")
    learned = recognise("torchvision", tensors | counters(tensors), "file").experiment
    assert learned.name == "maskrcnn_resnet50_fpn"
    norm = learned.model.backbone
    assert (norm.norm, norm.norm_epsilon, norm.freeze_stages, norm.pyramid_norm) == ("batch", 1e-5, 0, "none")


def test_keypoints_of_every_class():
    tensors = nothing("keypointrcnn_resnet50_fpn")
    for part, rows in (("cls_score", 4), ("bbox_pred", 16)):
        for kind in ("weight", "bias"):
            name = f"roi_heads.box_predictor.{part}.{kind}"
            tensors[name] = tensors[name][:rows]
    tensors["roi_heads.keypoint_predictor.kps_score_lowres.weight"] = np.zeros((512, 5, 4, 4), np.float32)
    model = recognise("torchvision", tensors, "file").experiment.model
    assert (model.num_classes, model.keypoint.classes, model.keypoint.num_keypoints, model.keypoint.layers) == (3, (0, 1, 2), 5, 8)


def test_anchors_of_other_ratios_must_be_said():
    """A file tells their number alone."""
    tensors = nothing("maskrcnn_resnet50_fpn")
    for part, rows in (("cls_logits", 5), ("bbox_pred", 20)):
        tensors[f"rpn.head.{part}.weight"], tensors[f"rpn.head.{part}.bias"] = np.zeros((rows, 256, 1, 1), np.float32), np.zeros(rows, np.float32)
    found = recognise("torchvision", tensors, "file")
    model = found.experiment.model
    names = found.table(model)
    with pytest.raises(InputError, match=r"file .* 4 of another shape: rpn.head.cls_logits.weight \[5, 256, 1, 1\] instead of \[3, 256, 1, 1\]"):
        check(found.tensors, names, shapes(model), "file")
    model = replace(model, rpn=replace(model.rpn, aspect_ratios=(0.25, 0.5, 1.0, 2.0, 4.0)))
    assert check(found.tensors, names, shapes(model), "file") == []


def test_folded_batch_norm(test_data):
    """A ResNet-18 of which four convolutions are missing."""
    tensors = arrays(test_data / "resnet18_partial" / "resnet18_imagenet_bnfolded_no_layer4_convs.npz")
    found = recognise("torchvision", tensors, "file")
    model = found.experiment.model
    names = found.table(model)
    assert model.backbone == backbone("resnet18", 64, norm_epsilon=0.0)
    missing = [f"layer4.{block}.conv{number}.weight" for block in (0, 1) for number in (1, 2)]
    assert check(found.tensors, names, shapes(model), "file", partial=True) == missing
    with pytest.raises(InputError, match=r"4 missing: layer4.0.conv1.weight.*--partial would leave"):
        check(found.tensors, names, shapes(model), "file")
    variables = to_ours(found.tensors, names)
    norms = variables["frozen"]["backbone"]
    places = {"conv1": norms["stem_norm"], "layer2.0.downsample.0": norms["res3_0"]["shortcut_norm"], "layer3.1.conv2": norms["res4_1"]["conv2_norm"]}
    for theirs, norm in places.items():
        np.testing.assert_array_equal(norm["bias"], tensors[f"{theirs}.bias"])
        assert not norm["mean"].any() and (norm["scale"] == 1).all() and (norm["var"] == 1).all()
    np.testing.assert_array_equal(variables["params"]["backbone"]["stem"]["kernel"][1, 2, :, 5], tensors["conv1.weight"][5, :, 1, 2])


UNKNOWN = {
    "vgg": ["features.0.weight", "classifier.0.weight"],
    "ssd": ["backbone.features.0.weight", "backbone.extra.0.0.weight", "head.classification_head.module_list.0.weight"],
    "fcn": ["backbone.conv1.weight", "backbone.layer1.0.conv1.weight", "classifier.0.weight"],
    "mobilenet": ["backbone.body.0.0.weight", "backbone.fpn.inner_blocks.0.0.weight", "rpn.head.cls_logits.weight", "roi_heads.box_head.fc6.weight"],
    "detectron2": ["backbone.bottom_up.stem.conv1.weight", "proposal_generator.rpn_head.conv.weight"],
    "other": ["weight"],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_files(name):
    with pytest.raises(InputError, match="no known model of torchvision: known are Faster, Mask and Keypoint R-CNN") as error:
        recognise("torchvision", {name: np.zeros((4, 4, 1, 1), np.float32) for name in UNKNOWN[name]}, "weights.pth")
    assert str(error.value).startswith("weights.pth ") and "\n" not in str(error.value) and UNKNOWN[name][0] in str(error.value)


def test_other_detectors_on_such_a_backbone():
    tensors = {name: tensor for name, tensor in nothing("fasterrcnn_resnet50_fpn").items() if name.startswith("backbone")}
    with pytest.raises(InputError, match="no known model of torchvision"):
        recognise("torchvision", tensors | {"head.classification_head.conv.0.0.weight": np.zeros((8, 8, 3, 3), np.float32)}, "retinanet.pth")


def test_a_network_of_other_depth():
    tensors = {name: tensor for name, tensor in nothing("resnet18").items() if not name.startswith("layer3.1")}
    with pytest.raises(InputError, match="blocks a stage are 2 2 1 2"):
        recognise("torchvision", tensors, "file")


LAYOUTS = {
    "vector": (table.VECTOR, (6,)), "convolution": (table.CONVOLUTION, (6, 5, 3, 2)), "matrix": (table.MATRIX, (6, 5)),
    "pointwise": (table.POINTWISE, (6, 5, 1, 1)), "4x4": (table.TRANSPOSED_4X4, (6, 5, 4, 4)), "2x2": (table.TRANSPOSED_2X2, (6, 5, 2, 2)),
    "flattened": (flattened(3), (6, 4 * 9)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [{}, {"unused_rows": 2}, {"background_first": True}])
def test_there_and_back(layout, rows):
    layout, shape = LAYOUTS[layout]
    entry = Entry("params/x", layout, **rows)
    tensor = np.random.default_rng(0).standard_normal(shape, np.float32)
    ours = entry.to_ours(tensor)
    unused = tensor[: entry.unused_rows] if entry.unused_rows else None
    np.testing.assert_array_equal(entry.to_theirs(ours, unused), tensor, strict=True)
    assert ours.size == tensor.size * (6 - entry.unused_rows) // 6
    zeros = entry.to_theirs(ours)
    assert not zeros[: entry.unused_rows].any()
    np.testing.assert_array_equal(zeros[entry.unused_rows :], tensor[entry.unused_rows :])


def test_layouts_by_hand():
    tensor = np.random.default_rng(0).standard_normal((6, 5, 2, 2), np.float32)
    np.testing.assert_array_equal(table.TRANSPOSED_2X2.ours(tensor)[4].reshape(2, 2, 5)[1, 0], tensor[4, :, 1, 0])
    np.testing.assert_array_equal(table.CONVOLUTION.ours(tensor)[1, 0, 3, 4], tensor[4, 3, 1, 0])
    np.testing.assert_array_equal(table.TRANSPOSED_4X4.ours(tensor)[1, 0, 4, 3], tensor[4, 3, 1, 0])
    matrix = np.random.default_rng(0).standard_normal((7, 2, 3, 3), np.float32)
    np.testing.assert_array_equal(flattened(3).ours(matrix.reshape(7, -1)).reshape(3, 3, 2, 7)[2, 1, 0], matrix[:, 0, 2, 1])
    scores = Entry("params/x", background_first=True).to_ours(np.float32([9, 0, 1, 2]))
    np.testing.assert_array_equal(scores, [0, 1, 2, 9])


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_every_tensor_of_a_small_model_there_and_back(name):
    model = model_config(name, classes=3)
    model = replace(
        model, backbone=replace(model.backbone, name="resnet18", width=8, pyramid_channels=16), box=replace(model.box, channels=12, convolution_channels=16),
        mask=replace(model.mask, channels=16), keypoint=replace(model.keypoint, channels=8),
    )  # fmt: skip
    names, rng = torchvision.table(model), np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model))
    tensors = {name: rng.standard_normal(tensor.shape, np.float32) for name, tensor in to_theirs(variables, names).items()}
    ours, rest = to_ours(tensors, names), unused_rows(tensors, names)
    assert set(rest) >= {"roi_heads.box_predictor.bbox_pred.weight", "roi_heads.box_predictor.bbox_pred.bias"}
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, variables)
    back = to_theirs(ours, names, rest)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key, strict=True)
