"""Detectron2's and the original Detectron's models: recognised by their tensors or by a configuration file, and refused by the name of a setting."""

import json
import re
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
import yaml
from library_models import FOLDER, arrays, paths

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    DataConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIConfig,
    RPNConfig,
    from_dict,
    to_dict,
)
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.weights import detectron2, detectron2_settings
from mrcnn_jax.weights.import_export import recognise
from mrcnn_jax.weights.param_map import check, to_ours, to_theirs

NAMES = json.loads((FOLDER.parent / "detectron1_names.json").read_text())
WIDTH, PYRAMID, HIDDEN = 8, 16, 24  # channels of the narrow models
NORMS = {"GN": "group", "SyncBN": "batch"}
JITTER = (640, 672, 704, 736, 768, 800)


def zoo(kind="mask", features="fpn", depth=50, groups=1, norm="FrozenBN", width=WIDTH) -> Experiment:
    """A model of Detectron2's zoo, spelled out in our terms, but with fewer channels."""
    fpn, c4, masks, keypoints, heavy = features == "fpn", features == "c4", kind == "mask", kind == "keypoint", norm in NORMS
    pyramid_norm = NORMS.get(norm, "none")
    letter = f"X_{depth}_{groups}x{8 * width // 64}d" if groups > 1 else f"R_{depth}"
    return Experiment(
        name=f"{kind}_rcnn_{letter}_{features.upper()}",
        model=ModelConfig(
            num_classes=1 if keypoints else 80,
            tasks=("boxes", *{"faster": (), "mask": ("masks",), "keypoint": ("keypoints",)}[kind]),
            backbone=BackboneConfig(
                name=f"resnet{depth}", groups=groups, group_width=8 if groups > 1 else 64, width=width, features=features,
                norm=NORMS.get(norm, "frozen"), norm_epsilon=1e-5, freeze_stages=2, stride_in_1x1=groups == 1 and norm != "GN",
                pyramid_channels=PYRAMID * width // WIDTH if fpn else 256, pyramid_norm=pyramid_norm,
            ),
            rpn=RPNConfig(
                smooth_l1_beta=0.0, pre_nms_train=2000 if fpn else 12000, pre_nms_test=1000 if fpn else 6000,
                post_nms_train=1500 if keypoints else 1000 if fpn else 2000, post_nms_test=1000,
            ),
            roi=RoIConfig(levels={"fpn": (2, 5), "c4": (4, 4), "dc5": (5, 5)}[features], level_epsilon=0.0),
            box=BoxHeadConfig(
                pool=PoolConfig(14 if c4 else 7, sampling_ratio=0), convolutions=4 if heavy else 0, convolution_channels=32 if heavy else 256,
                norm=pyramid_norm, fully_connected=0 if c4 else 1 if heavy else 2, channels=1024 if c4 else HIDDEN,
                smooth_l1_beta=0.5 if keypoints else 0.0,
            ),
            mask=MaskHeadConfig(
                pool=PoolConfig(14, sampling_ratio=0), layers=0 if c4 else 4, channels=(32 if heavy else 16) if masks else 256, norm=pyramid_norm,
                target_sampling_ratio=0,
            ),
            keypoint=KeypointHeadConfig(pool=PoolConfig(14, sampling_ratio=0), channels=16 if keypoints else 512),
            channel_order="bgr",
            pixel_mean=(103.53, 116.28, 123.675),
            pixel_std=(57.375, 57.12, 58.395) if groups > 1 else (1.0, 1.0, 1.0),
        ),
        data=DataConfig(dataset="data/coco", short_edge=JITTER, resize="antialiased", padding_divisor=32 if fpn else 1),
    )  # fmt: skip


@cache
def shapes(model: ModelConfig):
    return jax.eval_shape(lambda: initialise(MaskRCNN(model), jax.random.key(0)))


@cache
def nothing(experiment: Experiment) -> dict[str, np.ndarray]:
    """Zeros under Detectron2's names."""
    return to_theirs(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(experiment.model)), detectron2.table(experiment.model))


def golden_tensors(name):
    """Names and shapes of a stored model; large tensors are zeros that take no memory."""
    recipes = json.loads((FOLDER / name / "manifest.json").read_text())["tensors"]
    return arrays(FOLDER / name / "small.npz") | {tensor: np.broadcast_to(np.float32(0), recipe["shape"]) for tensor, recipe in recipes.items()}


def differences(ours, theirs, path=""):
    found = {}
    for name, value in ours.items():
        if isinstance(value, dict):
            found |= differences(value, theirs[name], f"{path}{name}.")
        elif value != theirs[name]:
            found[f"{path}{name}"] = (value, theirs[name])
    return found


# ---- recognised by their tensors ----


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"kind": "faster"}, {"kind": "keypoint"}, {"depth": 101}, {"depth": 101, "groups": 32},
        {"features": "c4"}, {"kind": "faster", "features": "c4"}, {"features": "dc5"},
        {"norm": "GN", "width": 32}, {"norm": "SyncBN"}, {"depth": 18}, {"depth": 34, "features": "dc5"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())) or "default",
)  # fmt: skip
def test_models_of_the_zoo_are_recognised(settings):
    expected = zoo(**settings)
    tensors = nothing(expected)
    found = recognise("detectron2", tensors, "file")
    assert found.experiment == expected and not found.backbone_alone
    assert json.dumps(to_dict(found.experiment)) == json.dumps(to_dict(from_dict(to_dict(found.experiment))))  # all numbers have their fields' types
    assert check(found.tensors, found.table(expected.model), shapes(expected.model), "file") == []
    assert {entry.path for entry in found.table(expected.model).values()} == set(paths(shapes(expected.model)))


SAMPLED = {"model.box.score_threshold": (0.05, 0.0), "model.roi.samples_per_image": (512, 1_000_000)}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("d2_mask_rcnn_R_50_FPN", {"model.rpn.samples_per_image": (256, 66510)}),
        ("d2_keypoint_rcnn_R_50_FPN", {"model.rpn.samples_per_image": (256, 66510)}),
        (
            "d2_mask_rcnn_R_50_C4",
            {"model.rpn.samples_per_image": (256, 15600), "model.rpn.post_nms_train": (2000, 150), "model.rpn.post_nms_test": (1000, 300)},
        ),
    ],
)
def test_without_a_configuration_the_zoos_is_found(name, expected):
    tensors = golden_tensors(name)
    alone, configured = (recognise("detectron2", tensors, name, settings).experiment for settings in (None, FOLDER / name / "config.yaml"))
    assert differences(to_dict(alone), to_dict(configured)) == SAMPLED | expected


@pytest.mark.parametrize("groups", [1, 32])
def test_backbones_are_recognised(groups):
    """torchvision's in Detectron2's names, and MSRA's in Caffe2's."""
    backbone = BackboneConfig(name="resnet50", groups=groups, group_width=8 if groups > 1 else 64, width=WIDTH, stride_in_1x1=False)
    model = ModelConfig(tasks=(), backbone=backbone)
    ours = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes(model))
    tensors = to_theirs(ours, detectron2.table(model))
    extra = {"stem.fc.weight": np.zeros((1000, 8)), "stem.fc.bias": np.zeros(1000), "res2.0.conv1.norm.num_batches_tracked": np.int64(0)}
    found = recognise("detectron2", tensors | extra, "file")
    assert found.backbone_alone and found.experiment.model == model and found.experiment.name == "resnet50"
    assert check(found.tensors, found.table(model), shapes(model), "file") == []

    caffe = {}
    ends = {"weight": "w", "norm.weight": "bn_s", "norm.bias": "bn_b"}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    for name, tensor in tensors.items():
        if stem := re.fullmatch(r"stem\.conv1\.(weight|norm\.weight|norm\.bias)", name):
            caffe[f"{'conv1' if stem[1] == 'weight' else 'res_conv1'}_{ends[stem[1]]}"] = tensor
        elif block := re.fullmatch(r"(res\d)\.(\d+)\.(\w+)\.(weight|norm\.weight|norm\.bias)", name):
            caffe[f"{block[1]}_{block[2]}_{branches[block[3]]}_{ends[block[4]]}"] = tensor
    found = recognise("detectron2", caffe | {"fc1000_w": np.zeros((1000, 8)), "fc1000_b": np.zeros(1000)}, "X-50.pkl")
    std = (57.375, 57.12, 58.395) if groups > 1 else (1.0, 1.0, 1.0)
    msra = replace(
        model, backbone=replace(backbone, stride_in_1x1=groups == 1, norm_epsilon=0.0),
        channel_order="bgr", pixel_mean=(103.53, 116.28, 123.675), pixel_std=std,
    )  # fmt: skip
    assert found.backbone_alone and found.experiment.model == msra
    assert check(found.tensors, found.table(msra), shapes(msra), "X-50.pkl") == []


def test_what_is_no_weight_is_left_out():
    tensors = {"backbone.stem.conv1.weight": 1, "roi_heads.mask_head.predictor.bias": 2}
    extra = ["pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.4", "anchor_generator.cell_anchors.0",
             "backbone.bottom_up.res2.0.conv1.norm.num_batches_tracked", "stem.fc.weight", "linear.bias"]  # fmt: skip
    assert detectron2.known(tensors | dict.fromkeys(extra)) == tensors
    prefixed = {f"module.{name}": value for name, value in (tensors | dict.fromkeys(extra)).items()}
    assert detectron2.known(prefixed) == tensors


def test_masks_and_boxes_without_classes():
    experiment = zoo()
    model = replace(experiment.model, mask=replace(experiment.model.mask, class_agnostic=True))
    tensors = dict(nothing(replace(experiment, model=model)))
    assert recognise("detectron2", tensors, "file").experiment.model == model
    for parameter in ("weight", "bias"):
        name = f"roi_heads.box_predictor.bbox_pred.{parameter}"
        tensors[name] = tensors[name][:4]
    with pytest.raises(InputError, match=r"^file: MODEL\.ROI_BOX_HEAD\.CLS_AGNOSTIC_BBOX_REG is True, but a model here can only have False$"):
        recognise("detectron2", tensors, "file")


def test_other_networks_are_refused():
    with pytest.raises(InputError, match="no backbone of resnet18, "):
        recognise("detectron2", {"head.cls_score.weight": np.zeros((80, 8), np.float32)}, "file")


# ---- configuration files ----


@pytest.fixture
def configured(tmp_path):
    """``configured(settings, **model)``: the experiment of a narrow model of the zoo with a configuration file of these settings, by full names."""

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
        return recognise("detectron2", nothing(zoo(**model)), "file", file).experiment

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
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]", {"model.rpn.anchor_sizes": (16.0, 32.0, 64.0, 128.0, 256.0)}),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32]], {"model.rpn.anchor_sizes": (32.0,) * 5}),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.4, 1, 3]] * 5, {"model.rpn.aspect_ratios": (0.4, 1.0, 3.0)}),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5, {"model.rpn.anchor_offset": 0.5}),
        ("MODEL.BACKBONE.FREEZE_AT", 0, {"model.backbone.freeze_stages": 0}),
        ("MODEL.RESNETS.STRIDE_IN_1X1", False, {"model.backbone.stride_in_1x1": False}),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.2, 0.6], {"model.rpn.background_iou": 0.2, "model.rpn.foreground_iou": 0.6}),
        ("MODEL.RPN.SMOOTH_L1_BETA", "1e-1", {"model.rpn.smooth_l1_beta": 0.1}),
        ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 4, {"model.rpn.min_size": 4.0}),
        ("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.6], {"model.roi.foreground_iou": 0.6}),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0, {"model.box.score_threshold": 0.0}),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "(20, 20, 10, 10)", {"model.box.delta_weights": (20.0, 20.0, 10.0, 10.0)}),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", {"model.box.pool": PoolConfig(7, sampling_ratio=0, aligned=False)}),
        ("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2, {"model.mask.pool": PoolConfig(14, sampling_ratio=2)}),
        ("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIPool", {"model.mask.pool": PoolConfig(14, "pool", "max", sampling_ratio=0)}),
        ("TEST.DETECTIONS_PER_IMAGE", 300, {"model.box.detections": 300}),
    ],
)  # fmt: skip
def test_a_setting_becomes_a_field(configured, name, value, expected):
    experiment = configured({name: value})
    assert {path: field(experiment, path) for path in expected} == expected
    assert from_dict(to_dict(experiment)) == experiment
    changed = differences(to_dict(experiment), to_dict(zoo()))
    assert changed and all(path.startswith(tuple(expected)) for path in changed)


def test_settings_of_an_architecture(configured):
    dilation = {"MODEL.RESNETS.RES5_DILATION": 1}
    assert configured(dilation, features="dc5").model.backbone.features == "c5"
    pool = {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 16}  # which res5 has for boxes and masks
    model = configured(pool, features="c4").model
    assert model.box.pool == model.mask.pool == PoolConfig(16, sampling_ratio=0, aligned=False)
    three = {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_HEADS.NUM_CLASSES": 3}
    assert configured(three, kind="keypoint").model.keypoint.classes == (0, 1, 2)
    batch = {"MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0}
    assert configured(batch).model.backbone.norm == "batch"


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("INPUT.FORMAT", "YUV-BT.601", "can only have 'BGR' or 'RGB'"),
        ("INPUT.MIN_SIZE_TRAIN", "sometimes", r"must be of the form of \[640, 672, "),
        ("INPUT.MIN_SIZE_TRAIN", [], "must be of the form of"),
        ("INPUT.MIN_SIZE_TRAIN", 800, "must be of the form of"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "'choice'"),
        ("INPUT.RANDOM_FLIP", "vertical", "'horizontal' or 'none'"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "DefaultAnchorGenerator"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0], [1.0, 2.0]], "equal throughout"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [0.5, 1.0, 2.0], "must be of the form of"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 48]] * 5, "one size for each level"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", float("nan"), "must be of the form of 0.0, not nan"),
        ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "build_resnet_fpn_backbone"),
        ("MODEL.BACKBONE.FREEZE_AT", "two", "must be of the form of 2, not 'two'"),
        ("MODEL.BACKBONE.FREEZE_AT", True, "must be of the form of 2, not True"),
        ("MODEL.FPN.FUSE_TYPE", "avg", "'sum'"),
        ("MODEL.FPN.NORM", "FrozenBN", "'' or 'BN' or 'SyncBN' or 'GN'"),
        ("MODEL.LOAD_PROPOSALS", True, "False"),
        ("MODEL.MASK_ON", 1, "must be of the form of"),
        ("MODEL.META_ARCHITECTURE", "RetinaNet", "'GeneralizedRCNN'"),
        ("MODEL.PIXEL_STD", [1.0, 1.0], r"must be of the form of \[1.0, 1.0, 1.0\]"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "'RPN'"),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True], "False, False, False, False"),
        ("MODEL.RESNETS.NORM", "", "'FrozenBN'"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "must be 32 after a stem of 8"),
        ("MODEL.RESNETS.RES5_DILATION", 2, "no architecture"),
        ("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "with features fpn it must be"),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", 0, "must be a multiple"),
        ("MODEL.RESNETS.STRIDE_IN_1X1", None, "must be of the form of True, not None"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou", "'smooth_l1'"),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2, "1.0"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True, "False"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNSeparateHead", "'FastRCNNConvFCHead'"),
        ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7.5, "must be of the form of"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated", "'ROIAlignV2' or 'ROIAlign' or 'ROIPool'"),
        ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True, "False"),
        ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "False"),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "False"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"], "with features fpn it must be"),
        ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "'StandardROIHeads' or 'Res5ROIHeads'"),
        ("MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "no architecture with MODEL.BACKBONE.NAME 'build_resnet_fpn_backbone', "),
        ("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "True"),
        ("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [512, 256], "equal throughout"),
        ("MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", False, "True"),
        ("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "'MaskRCNNConvUpsampleHead'"),
        ("MODEL.RPN.BBOX_REG_WEIGHTS", [10, 10, 5, 5], r"\[1.0, 1.0, 1.0, 1.0\]"),
        ("MODEL.RPN.BOUNDARY_THRESH", 0, "must be -1"),
        ("MODEL.RPN.HEAD_NAME", "MyHead", "'StandardRPNHead'"),
        ("MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6"], "with features fpn it must be"),
        ("MODEL.RPN.IOU_THRESHOLDS", [0.5], r"must be of the form of \[0.3, 0.7\]"),
        ("MODEL.RPN.LOSS_WEIGHT", 0.5, "1.0"),
    ],
)  # fmt: skip
def test_what_there_is_not_here_is_refused(configured, tmp_path, name, value, reason):
    with pytest.raises(InputError, match=reason) as error:
        configured({name: value})
    assert str(error.value).startswith(f"{tmp_path / 'config.yaml'}: ") and name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings, model, reason",
    [
        ({"MODEL.KEYPOINT_ON": True}, {"features": "c4"}, r"config.yaml: MODEL.KEYPOINT_ON .* has no keypoints"),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}, {"features": "c4"}, "config.yaml: MODEL.ANCHOR_GENERATOR.SIZES must be one list of sizes"),
        ({"MODEL.BACKBONE.FREEZE_AT": 9}, {}, r"config.yaml: backbone.freeze_stages must be 0 to 5 with features fpn, not 9"),
        ({"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}, {}, "config.yaml: rpn.anchor_sizes needs one size for each of the 5 levels"),
        ({"MODEL.RESNETS.DEPTH": 77}, {}, "config.yaml: backbone.name must be one of resnet18"),
        ({"INPUT.MIN_SIZE_TEST": 0}, {}, "config.yaml: data.short_edge_test must be greater than 0"),
    ],
)
def test_what_cannot_go_together_names_the_file(configured, settings, model, reason):
    with pytest.raises(InputError, match=reason):
        configured(settings, **model)


def test_a_depth_that_the_tensors_do_not_have(configured):
    model = configured({"MODEL.RESNETS.DEPTH": 101}).model
    with pytest.raises(InputError, match=r"255 missing: backbone\.bottom_up\.res4\.6\.conv1\.weight"):
        check(nothing(zoo()), detectron2.table(model), shapes(model), "file")


# ---- YAML ----


def test_files_are_based_on_others(tmp_path):
    folder = tmp_path / "Detectron1-Comparisons"
    folder.mkdir()
    (tmp_path / "Base.yaml").write_text("MODEL:\n  MASK_ON: True\n  RPN:\n    NMS_THRESH: 0.6\n    PRE_NMS_TOPK_TEST: 500\nSOLVER: [1, 2]\n")
    (folder / "middle.yaml").write_text('_BASE_: "../Base.yaml"\nMODEL:\n  RPN:\n    NMS_THRESH: 0.5\nINPUT:\n  MIN_SIZE_TRAIN: (800, )\n')
    file = folder / "top.yaml"
    file.write_text("_BASE_: middle.yaml\nMODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: &w [1, 1, 1, 1]}, RPN: {BBOX_REG_WEIGHTS: *w}}\n")
    assert detectron2_settings.read_settings(file) == {
        "MODEL.MASK_ON": True, "MODEL.RPN.NMS_THRESH": 0.5, "MODEL.RPN.PRE_NMS_TOPK_TEST": 500, "INPUT.MIN_SIZE_TRAIN": "(800, )",
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [1, 1, 1, 1], "MODEL.RPN.BBOX_REG_WEIGHTS": [1, 1, 1, 1],
    }  # fmt: skip
    (tmp_path / "Base.yaml").write_text("_BASE_: Detectron1-Comparisons/top.yaml\n")
    with pytest.raises(InputError, match="top.yaml is based on itself"):
        detectron2_settings.read_settings(file)
    (tmp_path / "Base.yaml").unlink()
    with pytest.raises(InputError, match=r"cannot read .*Base\.yaml, which .*middle\.yaml names as its _BASE_: No such file"):
        detectron2_settings.read_settings(file)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "it must hold sections"),
        (b"- MODEL\n- INPUT\n", "it must hold sections"),
        (b"MODEL: [unclosed\n", "is not valid YAML: while parsing"),
        (b"\x80\x02}q\x00(X\x05\x00\x00\x00modelq\x01", "is not valid YAML"),
        (b"MODEL: \x00\n", "is not valid YAML"),
        (b"[" * 2000, "is not valid YAML"),
        (b"!!python/object/apply:os.system ['true']\n", "is not valid YAML: could not determine a constructor"),
        (b"!!int ''\n", "is not valid YAML"),
        (b"MODEL: 3\n", "MODEL must be a section"),
        (b"MODEL: &m {RPN: *m}\n", "has none of its settings"),
        (b"MODEL: {RPN: &r {NMS_THRESH: *r}}\n", "MODEL.RPN.NMS_THRESH must be of the form of 0.7, not"),
        (b"MODEL: {RPN: {NMS_THRESH: '" + b"(" * 9999 + b"'}}", "MODEL.RPN.NMS_THRESH must be of the form"),
        (b"batch_size: 8\n", "has none of its settings"),
        (b"_BASE_: [1]\n", "_BASE_ must be the path"),
        (b"_BASE_: config.yaml\n", "is based on itself"),
        (b"_BASE_: .\n", "which .* names as its _BASE_: Is a directory"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(tmp_path, content, reason):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        recognise("detectron2", nothing(zoo(kind="faster")), "file", file)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.yaml: No such file"):
        detectron2_settings.read_settings(tmp_path / "nowhere.yaml")


# ---- the original Detectron ----


def caffe2(name, tensor, c4, rng):
    """A tensor of Detectron2 as the original had it: with a background, in front; anchors of one map ratio by ratio."""
    layer = name[:-2]
    if layer == "cls_score":
        return np.roll(tensor, 1, axis=0)
    if layer in ("bbox_pred", "mask_fcn_logits"):
        background = rng.standard_normal((4 if layer == "bbox_pred" else 1, *tensor.shape[1:]), np.float32)
        return np.concatenate([background, tensor])
    if c4 and layer in ("rpn_cls_logits", "rpn_bbox_pred"):
        return tensor.reshape(5, 3, -1, *tensor.shape[1:]).swapaxes(0, 1).reshape(tensor.shape)
    return tensor


@pytest.mark.parametrize("name", ["mask_rcnn_R_50_FPN", "keypoint_rcnn_R_50_FPN", "mask_rcnn_R_50_C4"])
def test_the_original_detectron_end_to_end(name):
    kind, c4 = name.partition("_")[0], name.endswith("C4")
    modern = zoo(kind, "c4" if c4 else "fpn")
    pools = [replace(pool, aligned=False, sampling_ratio=0 if c4 else 2) for pool in (modern.model.box.pool, modern.model.mask.pool)]
    keypoints = replace(modern.model.keypoint.pool, aligned=False, sampling_ratio=0 if c4 else 2)
    expected = replace(
        modern,
        model=replace(
            modern.model,
            backbone=replace(modern.model.backbone, norm_epsilon=0.0),
            rpn=replace(modern.model.rpn, anchor_offset=0.5, anchor_rounding="sides", smooth_l1_beta=1 / 9, post_nms_train=2000),
            roi=replace(modern.model.roi, inclusive=True),
            box=replace(modern.model.box, pool=pools[0], smooth_l1_beta=1.0),
            mask=replace(modern.model.mask, pool=pools[1], paste="integer"),
            keypoint=replace(modern.model.keypoint, pool=keypoints),
            pixel_mean=(102.9801, 115.9465, 122.7717),
        ),
        data=replace(modern.data, resize="bilinear", short_edge=JITTER if kind == "keypoint" else (800,)),
    )
    names, rng = detectron2.table(expected.model), np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes(expected.model))
    theirs = to_theirs(variables, names)
    for tensor in theirs:
        if ".running_" in tensor:  # folded into scale and bias, all that an original file has
            theirs[tensor] = np.full_like(theirs[tensor], tensor.endswith("var"))
    original = {old: caffe2(old, theirs[new], c4, rng) for old, new in NAMES[name]["c2_to_d2"].items() if not old.endswith(("_rm", "_riv"))}

    found = recognise("detectron2", original, name)
    assert differences(to_dict(found.experiment), to_dict(expected)) == {}
    assert check(found.tensors, found.table(expected.model), shapes(expected.model), name) == []
    assert found.tensors.keys() == theirs.keys()
    jax.tree.map(np.testing.assert_array_equal, to_ours(found.tensors, found.table(expected.model)), to_ours(theirs, names))
    ours = to_ours(found.tensors, found.table(expected.model))
    jax.tree.map(np.testing.assert_array_equal, ours["params"], variables["params"])
