"""Settings of Detectron2's configuration files become fields of the experiment, or are refused by name."""

from dataclasses import replace

import pytest
import yaml
from detectron2_zoo import differences, zoo, zoo_tensors
from library_models import variable_shapes

from mrcnn_jax.config import (
    DETECTRON2,
    BranchPoolConfig,
    Experiment,
    PoolConfig,
    RoIPooling,
    from_dict,
    to_dict,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import detectron2
from mrcnn_jax.weights.import_export import identify_model
from mrcnn_jax.weights.param_map import check_tensors


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
        ("INPUT.RANDOM_FLIP", "none", {"data.augment.flip": 0.0}),
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
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "combination of MODEL.BACKBONE.NAME 'build_resnet_fpn"),
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
            "config.yaml: rpn.anchor_sizes must have one size for each of the 5 levels",
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
