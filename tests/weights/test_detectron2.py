"""Detectron2's and the original Detectron's models are inferred from tensors and configuration files."""

import json
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
import yaml
from library_models import FOLDER, check_complete, read_arrays, variable_shapes, zero_tensors

from mrcnn_jax.config import (
    DETECTRON,
    DETECTRON2,
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    DataConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIConfig,
    RoIPooling,
    RPNConfig,
    from_dict,
    to_dict,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import detectron2
from mrcnn_jax.weights.import_export import identify_model
from mrcnn_jax.weights.param_map import check_tensors, to_jax, to_source

NAMES = json.loads((FOLDER.parent / "detectron1_names.json").read_text())
WIDTH, PYRAMID, HIDDEN = 8, 16, 24  # channels of the narrow models
NORMS = {"GN": "group", "SyncBN": "batch"}
JITTER = (640, 672, 704, 736, 768, 800)


def zoo(kind="mask", features="fpn", depth=50, groups=1, norm="FrozenBN", width=WIDTH) -> Experiment:
    """Returns the experiment of a model of Detectron2's zoo, but with fewer channels."""
    fpn, c4 = features == "fpn", features == "c4"
    has_masks, has_keypoints, heavy = kind == "mask", kind == "keypoint", norm in NORMS
    pyramid_norm = NORMS.get(norm, "none")
    letter = f"X_{depth}_{groups}x{8 * width // 64}d" if groups > 1 else f"R_{depth}"
    tasks = {"faster": (), "mask": ("masks",), "keypoint": ("keypoints",)}[kind]
    model = ModelConfig(
        num_classes=1 if has_keypoints else 80,
        tasks=("boxes", *tasks),
        backbone=BackboneConfig(
            name=f"resnet{depth}",
            groups=groups,
            group_width=8 if groups > 1 else 64,
            width=width,
            features=features,
            norm=NORMS.get(norm, "frozen"),
            norm_epsilon=1e-5,
            freeze_stages=2,
            stride_in_1x1=groups == 1 and norm != "GN",
            pyramid_channels=PYRAMID * width // WIDTH if fpn else 256,
            pyramid_norm=pyramid_norm,
        ),
        rpn=RPNConfig(
            smooth_l1_beta=0.0,
            pre_nms_train=2000 if fpn else 12000,
            pre_nms_test=1000 if fpn else 6000,
            post_nms_train=1500 if has_keypoints else 1000 if fpn else 2000,
            post_nms_test=1000,
        ),
        roi=RoIConfig(levels={"fpn": (2, 5), "c4": (4, 4), "dc5": (5, 5)}[features]),
        pool=PoolConfig(sampling_ratio=0),
        box=BoxHeadConfig(
            pool=BranchPoolConfig(14 if c4 else 7),
            convolutions=4 if heavy else 0,
            convolution_channels=32 if heavy else 256,
            norm=pyramid_norm,
            fully_connected=0 if c4 else 1 if heavy else 2,
            channels=1024 if c4 else HIDDEN,
            smooth_l1_beta=0.5 if has_keypoints else 0.0,
        ),
        mask=MaskHeadConfig(
            layers=0 if c4 else 4, channels=(32 if heavy else 16) if has_masks else 256, norm=pyramid_norm
        ),
        keypoint=KeypointHeadConfig(channels=16 if has_keypoints else 512),
        conventions=DETECTRON2,
        channel_order="bgr",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(57.375, 57.12, 58.395) if groups > 1 else (1.0, 1.0, 1.0),
    )
    data = DataConfig(dataset="data/coco", short_edge=JITTER, padding_divisor=32 if fpn else 1)
    return Experiment(name=f"{kind}_rcnn_{letter}_{features.upper()}", model=model, data=data)


@cache
def zoo_tensors(experiment: Experiment) -> dict[str, np.ndarray]:
    """Returns zeros under Detectron2's names."""
    return zero_tensors(experiment.model, detectron2.make_param_map)


def golden_tensors(name):
    """Returns a recorded model's tensors; large ones are zeros that take no memory."""
    recipes = json.loads((FOLDER / name / "manifest.json").read_text())["tensors"]
    zeros = {tensor: np.broadcast_to(np.float32(0), recipe["shape"]) for tensor, recipe in recipes.items()}
    return read_arrays(FOLDER / name / "small.npz") | zeros


def differences(ours, theirs, path=""):
    found = {}
    for name, value in ours.items():
        if isinstance(value, dict):
            found |= differences(value, theirs[name], f"{path}{name}.")
        elif value != theirs[name]:
            found[f"{path}{name}"] = (value, theirs[name])
    return found


# ---- inferred from tensors ----


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


def test_select_weights_drops_buffers_and_prefixes():
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
    assert detectron2.select_weights({f"module.{name}": value for name, value in given.items()}) == tensors


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
    with pytest.raises(InputError, match="the backbone of file is none of resnet18, "):
        identify_model("detectron2", tensors, "file")


# ---- configuration files ----


@pytest.fixture
def configured(tmp_path):
    """``configured(settings, **model)``: experiment of a zoo model with a configuration file."""

    def write(settings: dict, **model) -> Experiment:
        content = {}
        for name, value in settings.items():
            *sections, key = name.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(content))
        return identify_model("detectron2", zoo_tensors(zoo(**model)), "file", file).experiment

    return write


def field(experiment, path):
    for name in path.split("."):
        experiment = getattr(experiment, name)
    return experiment


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("INPUT.MIN_SIZE_TRAIN", "(480, 512)", {"data.short_edge": (480, 512)}),
        ("INPUT.MAX_SIZE_TEST", 2048, {"data.long_edge": 2048}),
        ("INPUT.RANDOM_FLIP", "none", {"data.flip": False}),
        ("INPUT.FORMAT", "RGB", {"model.channel_order": "rgb"}),
        ("MODEL.PIXEL_MEAN", [124, 116, 104], {"model.pixel_mean": (124.0, 116.0, 104.0)}),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]",
         {"model.rpn.anchor_sizes": (8.0, 16.0, 32.0, 64.0, 128.0)}),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32]], {"model.rpn.anchor_sizes": (32.0,) * 5}),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.4, 1, 3]] * 5,
         {"model.rpn.aspect_ratios": (0.4, 1.0, 3.0)}),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5, {"model.conventions.anchor_offset": 0.5}),
        ("MODEL.BACKBONE.FREEZE_AT", 0, {"model.backbone.freeze_stages": 0}),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False, {"model.backbone.stride_in_1x1": False}),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.2, 0.6],
         {"model.rpn.background_iou": 0.2, "model.rpn.foreground_iou": 0.6}),
        ("MODEL.RPN.SMOOTH_L1_BETA", "1e-1", {"model.rpn.smooth_l1_beta": 0.1}),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 4, {"model.rpn.min_size": 4.0}),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.6], {"model.roi.foreground_iou": 0.6}),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0, {"model.box.score_threshold": 0.0}),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(20, 20, 10, 10)",
         {"model.box.delta_weights": (20.0, 20.0, 10.0, 10.0)}),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2,
         {"model.pool": PoolConfig(sampling_ratio=2),
          "model.mask.pool": BranchPoolConfig(14, sampling_ratio=0),
          "model.keypoint.pool": BranchPoolConfig(14, sampling_ratio=0)}),
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2,
         {"model.mask.pool": BranchPoolConfig(14, sampling_ratio=2)}),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIPool", {"model.mask.pool": BranchPoolConfig(14, "roi_pool")}),
        ("TEST.DETECTIONS_PER_IMAGE", 300, {"model.box.max_detections": 300}),
    ],
)  # fmt: skip
def test_settings_become_fields(configured, name, value, expected):
    experiment = configured({name: value})
    assert {path: field(experiment, path) for path in expected} == expected
    assert from_dict(to_dict(experiment)) == experiment
    changed = differences(to_dict(experiment), to_dict(zoo()))
    assert changed and all(path.startswith(tuple(expected)) for path in changed)


def test_settings_of_architectures_become_fields(configured):
    assert (
        configured({"MODEL.RESNETS.RES5_DILATION": 1}, features="dc5", depth=18).model.backbone.features
        == "c5"
    )
    # with C4 the box head's pooling is that of masks too
    pool = {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 16}
    model = configured(pool, features="c4").model
    assert (
        model.pool_of("box")
        == model.pool_of("mask")
        == RoIPooling(16, "align", "average", 0, half_pixel=False)
    )
    three = {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 3}
    assert configured(three, kind="keypoint").model.keypoint.classes == (0, 1, 2)
    batch = {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0}
    assert configured(batch).model.backbone.norm == "batch"


def test_pooler_types_become_conventions(configured):
    heads = ("BOX", "MASK", "KEYPOINT")
    model = configured({f"MODEL.ROI_{head}_HEAD.POOLER_TYPE": "ROIAlign" for head in heads}).model
    assert model.conventions == replace(DETECTRON2, roi_half_pixel=False) and model.pool == PoolConfig(
        sampling_ratio=0
    )
    model = configured({"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign", "MODEL.MASK_ON": False}).model
    assert not model.conventions.roi_half_pixel  # poolers of absent heads do not matter


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("INPUT.FORMAT", "YUV-BT.601", "it must be 'BGR' or 'RGB'"),
        ("INPUT.MIN_SIZE_TRAIN", "sometimes", r"must look like \[640, 672, "),
        ("INPUT.MIN_SIZE_TRAIN", [], "must look like"),
        ("INPUT.MIN_SIZE_TRAIN", 800, "must look like"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "'choice'"),
        ("INPUT.RANDOM_FLIP", "vertical", "'horizontal' or 'none'"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "DefaultAnchorGenerator"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0], [1.0, 2.0]], "must have equal elements"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [0.5, 1.0, 2.0], "must look like"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 48]] * 5, "one size for each level"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", float("nan"), "must look like 0.0, not nan"),
        ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "build_resnet_fpn_backbone"),
        ("MODEL.BACKBONE.FREEZE_AT", "two", "must look like 2, not 'two'"),
        ("MODEL.BACKBONE.FREEZE_AT", True, "must look like 2, not True"),
        ("MODEL.FPN.FUSE_TYPE", "avg", "'sum'"),
        ("MODEL.FPN.NORM", "FrozenBN", "'' or 'BN' or 'SyncBN' or 'GN'"),
        ("MODEL.LOAD_PROPOSALS", True, "False"),
        ("MODEL.MASK_ON", 1, "must look like"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "'GeneralizedRCNN'"),
        ("MODEL.PIXEL_STD", [1.0, 1.0], r"must look like \[1.0, 1.0, 1.0\]"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "'RPN'"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True], "False, False, False, False"),
        ("MODEL.RESNETS.NORM", "", "'FrozenBN'"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "must be 32 after a stem of 8"),
        ("MODEL.RESNETS.RES5_DILATION", 2, "is not supported$"),
        ("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "with features fpn"),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", 0, "must be a multiple"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", None, "must look like True, not None"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "'smooth_l1'"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2, "1.0"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "False"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNSeparateHead", "'FastRCNNConvFCHead'"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7.5, "must look like"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated", "'ROIAlignV2' or 'ROIAlign' or 'ROIPool'"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", "must be ROIAlign for all heads or ROIAlignV2"),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "False"),
        ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "False"),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "False"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"], "with features fpn"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "'StandardROIHeads' or 'Res5ROIHeads'"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "combination of MODEL.BACKBONE.NAME 'build_resnet_fpn_backbone', "),
        ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "True"),
        ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [512, 256], "must have equal elements"),
        ("MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", False, "True"),
        ("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "'MaskRCNNConvUpsampleHead'"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", [10, 10, 5, 5], r"\[1.0, 1.0, 1.0, 1.0\]"),
        ("MODEL.RPN.BOUNDARY_THRESH", 0, "must be -1"),
        ("MODEL.RPN.HEAD_NAME", "MyHead", "'StandardRPNHead'"),
        ("MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6"], "with features fpn"),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.5], r"must look like \[0.3, 0.7\]"),
        ("MODEL.RPN.LOSS_WEIGHT", 0.5, "1.0"),
    ],
)  # fmt: skip
def test_unsupported_settings_are_refused(configured, tmp_path, name, value, reason):
    with pytest.raises(InputError, match=reason) as error:
        configured({name: value})
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.yaml'}: ") and "\n" not in message
    assert name in message or (name.endswith("POOLER_TYPE") and "POOLER_TYPE" in message)


@pytest.mark.parametrize(
    "settings, model, reason",
    [
        (
            {"MODEL.KEYPOINT_ON": True},
            {"features": "c4"},
            r"config.yaml: MODEL.KEYPOINT_ON .* has no keypoint head",
        ),
        (
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]},
            {"features": "c4"},
            "config.yaml: MODEL.ANCHOR_GENERATOR.SIZES must be one list of sizes",
        ),
        (
            {"MODEL.BACKBONE.FREEZE_AT": 9},
            {},
            r"config.yaml: backbone.freeze_stages must be 0 to 5 with features fpn, not 9",
        ),
        (
            {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]},
            {},
            "config.yaml: rpn.anchor_sizes needs one size for each of the 5 levels",
        ),
        ({"MODEL.RESNETS.DEPTH": 77}, {}, "config.yaml: backbone.name must be one of resnet18"),
        ({"INPUT.MIN_SIZE_TEST": 0}, {}, "config.yaml: data.short_edge_test must be greater than 0"),
    ],
)
def test_contradicting_settings_are_refused(configured, settings, model, reason):
    with pytest.raises(InputError, match=reason):
        configured(settings, **model)


def test_depth_must_be_that_of_the_tensors(configured):
    model = configured({"MODEL.RESNETS.DEPTH": 101}).model
    with pytest.raises(InputError, match=r"255 missing: backbone\.bottom_up\.res4\.6\.conv1\.weight"):
        check_tensors(zoo_tensors(zoo()), detectron2.make_param_map(model), variable_shapes(model), "file")


# ---- the original Detectron ----


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
