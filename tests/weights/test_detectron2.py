"""Detectron2's and the original Detectron's models are inferred from their tensors."""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from detectron2_zoo import JITTER, WIDTH, differences, zoo, zoo_tensors
from library_models import FOLDER, check_complete, read_arrays, variable_shapes, zero_tensors

from mrcnn_jax.config import (
    DETECTRON,
    BackboneConfig,
    BranchPoolConfig,
    ModelConfig,
    PoolConfig,
    from_dict,
    to_dict,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import detectron2
from mrcnn_jax.weights.import_export import identify_model
from mrcnn_jax.weights.param_map import check_tensors, to_jax, to_source

NAMES = json.loads((FOLDER.parent / "detectron1_names.json").read_text())


def golden_tensors(name):
    """Returns a recorded model's tensors; large ones are zeros that take no memory."""
    recipes = json.loads((FOLDER / name / "manifest.json").read_text())["tensors"]
    zeros = {tensor: np.broadcast_to(np.float32(0), recipe["shape"]) for tensor, recipe in recipes.items()}
    return read_arrays(FOLDER / name / "small.npz") | zeros


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "keypoint"},
        {"features": "c4"},
        {"groups": 32},
        {"kind": "faster", "depth": 18},
        {"kind": "faster", "features": "c4", "depth": 18},
        {"features": "dc5", "depth": 18},
        {"norm": "GN", "width": 32, "depth": 18},
        {"norm": "SyncBN", "depth": 18},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)
def test_models_of_the_zoo_are_identified(settings):
    expected = zoo(**settings)
    source = identify_model("detectron2", zoo_tensors(expected), "file")
    assert not source.is_backbone and differences(to_dict(source.experiment), to_dict(expected)) == {}
    values = to_dict(source.experiment)
    assert json.dumps(values) == json.dumps(
        to_dict(from_dict(values))
    )  # all numbers have the types of their fields
    check_complete(source, "file")


SAMPLED = {"model.box.score_threshold": (0.05, 0.0), "model.roi.samples_per_image": (512, 1_000_000)}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("d2_mask_rcnn_R_50_FPN", {"model.rpn.samples_per_image": (256, 66510)}),
        ("d2_keypoint_rcnn_R_50_FPN", {"model.rpn.samples_per_image": (256, 66510)}),
        (
            "d2_mask_rcnn_R_50_C4",
            {
                "model.rpn.samples_per_image": (256, 15600),
                "model.rpn.post_nms_train": (2000, 150),
                "model.rpn.post_nms_test": (1000, 300),
            },
        ),
    ],
)
def test_without_a_configuration_the_zoos_is_assumed(name, expected):
    tensors = golden_tensors(name)
    alone = identify_model("detectron2", tensors, name).experiment
    configured = identify_model("detectron2", tensors, name, FOLDER / name / "config.yaml").experiment
    assert differences(to_dict(alone), to_dict(configured)) == SAMPLED | expected


CAFFE2_BRANCHES = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
CAFFE2_ENDS = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}


def to_caffe2(tensors):
    """Renames a backbone's tensors as in MSRA's files, which have no statistics."""
    renamed = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(stem|(res\d)\.(\d+))\.(\w+)\.(weight|norm\.weight|norm\.bias)", name):
            stem = "conv1" if match[5] == "weight" else "res_conv1"
            layer = stem if match[1] == "stem" else f"{match[2]}_{match[3]}_{CAFFE2_BRANCHES[match[4]]}"
            renamed[f"{layer}_{CAFFE2_ENDS[match[5]]}"] = tensor
    return renamed


@pytest.mark.parametrize("groups", [1, 32])
def test_backbones_are_identified(groups):
    """torchvision's under Detectron2's names, and MSRA's under Caffe2's."""
    group_width = 8 if groups > 1 else 64
    backbone = BackboneConfig(groups=groups, group_width=group_width, width=WIDTH, stride_in_1x1=False)
    model = ModelConfig(tasks=(), backbone=backbone)
    tensors = zero_tensors(model, detectron2.make_param_map)
    extra = {
        "stem.fc.weight": np.zeros((1000, 8)),
        "stem.fc.bias": np.zeros(1000),
        "res2.0.conv1.norm.num_batches_tracked": np.int64(0),
    }
    source = identify_model("detectron2", tensors | extra, "file")
    assert source.is_backbone and source.experiment.model == model and source.experiment.name == "resnet50"
    check_complete(source, "file")

    classifier = {"fc1000_w": np.zeros((1000, 8)), "fc1000_b": np.zeros(1000)}
    source = identify_model("detectron2", to_caffe2(tensors) | classifier, "X-50.pkl")
    msra = replace(
        model,
        backbone=replace(backbone, stride_in_1x1=groups == 1, norm_epsilon=0.0),
        channel_order="bgr",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(57.375, 57.12, 58.395) if groups > 1 else (1.0, 1.0, 1.0),
    )
    assert source.is_backbone and source.experiment.model == msra
    assert (
        check_tensors(source.tensors, source.make_param_map(msra), variable_shapes(model), "X-50.pkl") == []
    )


def test_select_weights_drops_buffers():
    tensors = {"backbone.stem.conv1.weight": 1, "roi_heads.mask_head.predictor.bias": 2}
    buffers = [
        "pixel_mean",
        "pixel_std",
        "proposal_generator.anchor_generator.cell_anchors.4",
        "anchor_generator.cell_anchors.0",
        "backbone.bottom_up.res2.0.conv1.norm.num_batches_tracked",
        "stem.fc.weight",
        "linear.bias",
    ]
    given = tensors | dict.fromkeys(buffers)
    assert detectron2.select_weights(given) == tensors


def test_class_agnostic_masks_are_identified_and_class_agnostic_boxes_refused():
    experiment = zoo(depth=18)
    model = replace(experiment.model, mask=replace(experiment.model.mask, class_agnostic=True))
    tensors = dict(zoo_tensors(experiment))
    for name in ("roi_heads.mask_head.predictor.weight", "roi_heads.mask_head.predictor.bias"):
        tensors[name] = tensors[name][:1]
    assert identify_model("detectron2", tensors, "file").experiment.model == model
    for name in ("roi_heads.box_predictor.bbox_pred.weight", "roi_heads.box_predictor.bbox_pred.bias"):
        tensors[name] = tensors[name][:4]
    reason = r"CLS_AGNOSTIC_BBOX_REG True is not supported: it must be False"
    with pytest.raises(InputError, match=rf"^file: MODEL\.ROI_BOX_HEAD\.{reason}$"):
        identify_model("detectron2", tensors, "file")


def test_other_networks_are_refused():
    tensors = {"head.cls_score.weight": np.zeros((80, 8), np.float32)}
    with pytest.raises(InputError, match="file is a RetinaNet, which is not supported"):
        identify_model("detectron2", tensors, "file")
    tensors = {"proposal_generator.rpn_head.conv.weight": np.zeros((8, 8, 3, 3), np.float32)}
    with pytest.raises(InputError, match="the backbone of file is none of resnet18, "):
        identify_model("detectron2", tensors, "file")


def detectron_tensor(name, tensor, c4, rng):
    """Reorders a tensor as in the original: background first, anchors of one map ratio by ratio."""
    layer = name[:-2]
    if layer == "cls_score":
        return np.roll(tensor, 1, axis=0)
    if layer in ("bbox_pred", "mask_fcn_logits"):
        rows = 4 if layer == "bbox_pred" else 1
        return np.concatenate([rng.standard_normal((rows, *tensor.shape[1:]), np.float32), tensor])
    if c4 and layer in ("rpn_cls_logits", "rpn_bbox_pred"):
        return tensor.reshape(5, 3, -1, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
    return tensor


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN", "keypoint_rcnn_R_50_FPN", "mask_rcnn_R_50_C4"])
def test_original_detectron_is_identified_and_converted(name):
    kind, c4 = name.partition("_")[0], name.endswith("C4")
    of_detectron2 = zoo(kind, "c4" if c4 else "fpn")
    model, template = of_detectron2.model, variable_shapes(of_detectron2.model)
    expected = replace(
        of_detectron2,
        model=replace(
            model,
            backbone=replace(model.backbone, norm_epsilon=0.0),
            rpn=replace(model.rpn, smooth_l1_beta=1 / 9, post_nms_train=2000),
            pool=PoolConfig(sampling_ratio=0 if c4 else 2),
            box=replace(model.box, smooth_l1_beta=1.0),
            keypoint=replace(model.keypoint, pool=BranchPoolConfig(14, sampling_ratio=2 if c4 else None)),
            conventions=DETECTRON,
            pixel_mean=(102.9801, 115.9465, 122.7717),
        ),
        data=replace(of_detectron2.data, short_edge=JITTER if kind == "keypoint" else (800,)),
    )
    param_map, rng = detectron2.make_param_map(expected.model), np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), template)
    tensors = to_source(variables, param_map)
    for tensor in tensors:
        if ".running_" in tensor:  # folded into scale and bias in the original's files
            tensors[tensor] = np.full_like(tensors[tensor], tensor.endswith("var"))
    converted = NAMES[name]["c2_to_d2"].items()
    original = {
        old: detectron_tensor(old, tensors[new], c4, rng)
        for old, new in converted
        if not old.endswith(("_rm", "_riv"))
    }

    source = identify_model("detectron2", original, name)
    assert differences(to_dict(source.experiment), to_dict(expected)) == {}
    assert check_tensors(source.tensors, source.make_param_map(expected.model), template, name) == []
    assert source.tensors.keys() == tensors.keys()
    ours = to_jax(source.tensors, param_map)
    jax.tree.map(np.testing.assert_array_equal, ours, to_jax(tensors, param_map))
    jax.tree.map(np.testing.assert_array_equal, ours["params"], variables["params"])
