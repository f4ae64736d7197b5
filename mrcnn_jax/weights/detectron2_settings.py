"""Detectron2's configuration as ours: that of a file, or the model zoo's for the tensors at hand; also what the original Detectron had fixed."""

import ast
import math
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

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
    RoIConfig,
    RPNConfig,
)
from mrcnn_jax.config.model import BASIC, ROI_LEVELS
from mrcnn_jax.config.validation import require
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.param_map import Tensors, backbone_of

Settings = dict[str, Any]
"""Values by their full names, such as "MODEL.RPN.NMS_THRESH"."""

NORMS = {"FrozenBN": "frozen", "BN": "batch", "SyncBN": "batch", "GN": "group", "": "none"}
LEARNED = ("", "BN", "SyncBN", "GN")
POOLERS = {"ROIAlignV2": "roi_align", "ROIAlign": "roi_align", "ROIPool": "roi_pool"}

SUPPORTED = {
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice",),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.BACKBONE.NAME": ("build_resnet_fpn_backbone", "build_resnet_backbone"),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.FPN.NORM": LEARNED,
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": ([False] * 4,),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN", "GN"),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": (1.0,),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "MODEL.ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead", ""),
    "MODEL.ROI_BOX_HEAD.NORM": LEARNED,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": tuple(POOLERS),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False,),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": (False,),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (False,),
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1],),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "Res5ROIHeads"),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": (True,),
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": (1.0,),
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ("KRCNNConvDeconvUpsampleHead",),
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": (True,),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": tuple(POOLERS),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.NORM": LEARNED,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": tuple(POOLERS),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": (1.0,),
    "MODEL.RPN.BBOX_REG_WEIGHTS": ((1.0, 1.0, 1.0, 1.0),),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.LOSS_WEIGHT": (1.0,),
}
"""The values that a model here can have, the model zoo's first."""

PYRAMID = ["p2", "p3", "p4", "p5", "p6"]
ARCHITECTURES = {
    features: {
        "MODEL.BACKBONE.NAME": backbone,
        "MODEL.ROI_HEADS.NAME": heads,
        "MODEL.RESNETS.RES5_DILATION": dilation,
        "MODEL.RESNETS.OUT_FEATURES": stages,
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.ROI_HEADS.IN_FEATURES": roi_levels,
    }
    for features, backbone, heads, dilation, stages, levels, roi_levels in (
        ("fpn", "build_resnet_fpn_backbone", "StandardROIHeads", 1, ["res2", "res3", "res4", "res5"], PYRAMID, PYRAMID[:4]),
        ("c4", "build_resnet_backbone", "Res5ROIHeads", 1, ["res4"], ["res4"], ["res4"]),
        ("c5", "build_resnet_backbone", "StandardROIHeads", 1, ["res5"], ["res5"], ["res5"]),
        ("dc5", "build_resnet_backbone", "StandardROIHeads", 2, ["res5"], ["res5"], ["res5"]),
    )
}
TELLING = ("MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.RESNETS.RES5_DILATION")
"""The settings that go with backbone.features, and those of them that tell it."""


def _section(name: str, **values: Any) -> Settings:
    return {f"{name}.{key}": value for key, value in values.items()}


ZOO = {
    **{name: values[0] for name, values in SUPPORTED.items()},
    **ARCHITECTURES["fpn"],
    **_section("INPUT", MAX_SIZE_TEST=1333, MIN_SIZE_TEST=800, MIN_SIZE_TRAIN=[640, 672, 704, 736, 768, 800]),
    **_section("TEST", DETECTIONS_PER_IMAGE=100),
    **_section("MODEL", KEYPOINT_ON=False, MASK_ON=False, PIXEL_MEAN=(103.53, 116.28, 123.675), PIXEL_STD=(1.0, 1.0, 1.0)),
    **_section("MODEL.BACKBONE", FREEZE_AT=2),
    **_section(
        "MODEL.RESNETS", DEPTH=50, NUM_GROUPS=1, WIDTH_PER_GROUP=64, STEM_OUT_CHANNELS=64, RES2_OUT_CHANNELS=256, STRIDE_IN_1X1=True,
    ),
    **_section("MODEL.FPN", OUT_CHANNELS=256),
    **_section(
        "MODEL.ANCHOR_GENERATOR", SIZES=[[32.0], [64.0], [128.0], [256.0], [512.0]], ASPECT_RATIOS=[[0.5, 1.0, 2.0]], OFFSET=0.0,
    ),
    **_section("MODEL.PROPOSAL_GENERATOR", MIN_SIZE=0.0),
    **_section(
        "MODEL.RPN", CONV_DIMS=[-1], BOUNDARY_THRESH=-1, IOU_THRESHOLDS=(0.3, 0.7), BATCH_SIZE_PER_IMAGE=256, POSITIVE_FRACTION=0.5,
        SMOOTH_L1_BETA=0.0, NMS_THRESH=0.7, PRE_NMS_TOPK_TRAIN=2000, PRE_NMS_TOPK_TEST=1000, POST_NMS_TOPK_TRAIN=1000, POST_NMS_TOPK_TEST=1000,
    ),
    **_section(
        "MODEL.ROI_HEADS", NUM_CLASSES=80, IOU_THRESHOLDS=(0.5,), BATCH_SIZE_PER_IMAGE=512, POSITIVE_FRACTION=0.25, SCORE_THRESH_TEST=0.05,
        NMS_THRESH_TEST=0.5,
    ),
    **_section(
        "MODEL.ROI_BOX_HEAD", POOLER_RESOLUTION=7, POOLER_SAMPLING_RATIO=0, NUM_CONV=0, CONV_DIM=256, NUM_FC=2, FC_DIM=1024, SMOOTH_L1_BETA=0.0,
        BBOX_REG_WEIGHTS=(10.0, 10.0, 5.0, 5.0),
    ),
    **_section("MODEL.ROI_MASK_HEAD", POOLER_RESOLUTION=14, POOLER_SAMPLING_RATIO=0, NUM_CONV=4, CONV_DIM=256, CLS_AGNOSTIC_MASK=False),
    **_section("MODEL.ROI_KEYPOINT_HEAD", POOLER_RESOLUTION=14, POOLER_SAMPLING_RATIO=0, CONV_DIMS=[512] * 8, NUM_KEYPOINTS=17),
}  # fmt: skip
"""What the model zoo's detectors with a pyramid have, and the types of all that is read: a list has any number of such values, a tuple so many."""

ONE_MAP = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32.0, 64.0, 128.0, 256.0, 512.0]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
}
C4 = {
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
}
KEYPOINTS = {"MODEL.KEYPOINT_ON": True, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500}
RESNEXT = {"MODEL.PIXEL_STD": (57.375, 57.12, 58.395), "MODEL.RESNETS.STRIDE_IN_1X1": False}
ORIGINAL = {
    "MODEL.PIXEL_MEAN": (102.9801, 115.9465, 122.7717),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.SMOOTH_L1_BETA": 1 / 9,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    **{f"MODEL.ROI_{head}_HEAD.POOLER_TYPE": "ROIAlign" for head in ("BOX", "MASK", "KEYPOINT")},
    **{f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO": 2 for head in ("BOX", "MASK", "KEYPOINT")},
}
"""What other models have instead, the last of all the original Detectron's."""

CHANNELS = {
    "MODEL.FPN.OUT_CHANNELS": "backbone.fpn_lateral2.weight",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "roi_heads.box_head.conv1.weight",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "roi_heads.box_head.fc1.weight",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "roi_heads.keypoint_head.score_lowres.bias",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "roi_heads.mask_head.deconv.bias",
}
LAYERS = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "roi_heads.box_head.conv",
    "MODEL.ROI_BOX_HEAD.NUM_FC": "roi_heads.box_head.fc",
}
FIRST = {
    "MODEL.FPN.NORM": "backbone.fpn_lateral2",
    "MODEL.ROI_BOX_HEAD.NORM": "roi_heads.box_head.conv1",
    "MODEL.ROI_MASK_HEAD.NORM": "roi_heads.mask_head.mask_fcn1",
}
"""What the tensors themselves say: as many as a tensor has rows, as layers of that name, the normalisation of a layer."""


def settings_of(tensors: Tensors, original: bool, origin: str) -> Settings:
    """The settings of the model zoo for such tensors, or of the ``original`` Detectron, whose code had some of them fixed.

    Detectors with group norm are taken to be the zoo's too, and a single map of res5 to be dilated. InputError where there is no ResNet.
    """
    c4, fpn = "roi_heads.res5.0.conv1.weight" in tensors, "backbone.fpn_lateral2.weight" in tensors
    prefix = "backbone.bottom_up." if fpn else "backbone."

    def block(stage, number):
        return f"{'roi_heads.' if c4 and stage == 5 else prefix}res{stage}.{number}"

    def rows(name):
        return tensors[name].shape[0]

    def layers(numbered):
        return [name for number in range(100) if (name := f"{numbered}{number}.weight") in tensors]

    def norm(layer):
        return "" if f"{layer}.norm.weight" not in tensors else "SyncBN" if f"{layer}.norm.running_mean" in tensors else "GN"

    backbone = backbone_of(tensors, f"{prefix}stem.conv1.weight", block, origin)
    settings = ZOO | {name: rows(tensor) for name, tensor in CHANNELS.items() if tensor in tensors}
    settings |= {name: len(layers(layer)) for name, layer in LAYERS.items()} | {name: norm(layer) for name, layer in FIRST.items()}
    group = norm(f"{prefix}stem.conv1") == "GN"
    settings |= {
        "MODEL.MASK_ON": "roi_heads.mask_head.predictor.weight" in tensors,
        "MODEL.RESNETS.DEPTH": int(backbone.name.removeprefix("resnet")),
        "MODEL.RESNETS.NORM": "GN" if group else "SyncBN" if settings["MODEL.FPN.NORM"] == "SyncBN" else "FrozenBN",
        "MODEL.RESNETS.NUM_GROUPS": backbone.groups,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": backbone.width * (1 if backbone.name in BASIC else 4),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": backbone.width,
        "MODEL.RESNETS.STRIDE_IN_1X1": not group,
        "MODEL.RESNETS.WIDTH_PER_GROUP": backbone.group_width * backbone.width // 64,
        "MODEL.RPN.CONV_DIMS": [-1] * max(1, len(layers("proposal_generator.rpn_head.conv.conv"))),
    }
    scores, deltas, masks = (f"roi_heads.{part}.weight" for part in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"))
    if scores in tensors:
        classes = settings["MODEL.ROI_HEADS.NUM_CLASSES"] = rows(scores) - 1
        settings["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] = classes > 1 and deltas in tensors and rows(deltas) == 4
        settings["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"] = classes > 1 and masks in tensors and rows(masks) == 1
    if backbone.groups > 1:
        settings |= RESNEXT
    if "roi_heads.keypoint_head.score_lowres.weight" in tensors:
        stacked = [rows(layer) for layer in layers("roi_heads.keypoint_head.conv_fcn")]
        settings |= KEYPOINTS | {"MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": stacked or [512]}
    elif original:
        settings["INPUT.MIN_SIZE_TRAIN"] = [800]
    if original:
        settings |= ORIGINAL
    if not fpn:
        settings |= ARCHITECTURES["c4" if c4 else "dc5"] | ONE_MAP | (C4 if c4 else {})
    if settings["MODEL.MASK_ON"]:
        settings["MODEL.ROI_MASK_HEAD.NUM_CONV"] = len(layers("roi_heads.mask_head.mask_fcn"))
    return settings


def read_settings(path: Path, _above: tuple[Path, ...] = ()) -> Settings:
    """What a configuration file of Detectron2 (YAML), and those that it is based on, say of the settings that matter here.

    InputError, in one sentence, where a file cannot be read, is none or is based on itself.
    """
    try:
        here = path.resolve()
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        named = f", which {_above[-1]} names as its _BASE_" if _above else ""
        raise InputError(f"cannot read {path}{named}: {error.strerror}") from error
    except Exception as error:  # of whatever kind: what PyYAML raises for damaged files is not documented
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    require(here not in _above, f"{path} is based on itself: its _BASE_ leads back to it")
    settings = _known_settings(content, path)
    if "_BASE_" in content:
        base = content["_BASE_"]
        require(isinstance(base, str), f"{path}: _BASE_ must be the path of another configuration file, not {reprlib.repr(base)}")
        settings = read_settings(path.parent / base, (*_above, here)) | settings
    require(bool(settings or _above), f"{path} is no configuration of Detectron2: it has none of its settings, such as MODEL.RESNETS.DEPTH")
    return settings


def _known_settings(content: Any, path: Path) -> Settings:
    require(isinstance(content, dict), f"{path} is no configuration of Detectron2: it must hold sections such as MODEL and INPUT")
    settings = {}
    for name in ZOO:
        *sections, key = name.split(".")
        place = content
        for section in sections:
            place = place.get(section, {})
            require(isinstance(place, dict), f"{path}: {section} must be a section with settings, not {reprlib.repr(place)}")
        if key in place:
            settings[name] = place[key]
    return settings


def _typed(name: str, value: Any) -> Any:
    try:
        return _like(ZOO[name], value)
    except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError) as error:
        raise InputError(f"{name} must be of the form of {_text(ZOO[name])}, not {reprlib.repr(value)}") from error


def _like(example: Any, value: Any) -> Any:
    """The value in the types of an example, or ValueError, and whatever else texts give that are not Python's."""
    if isinstance(value, str) and not isinstance(example, str):  # Detectron2 writes tuples and the like as text that Python would read
        value = ast.literal_eval(value)
    if isinstance(example, list | tuple):
        if not isinstance(value, list | tuple) or not value or (isinstance(example, tuple) and len(value) != len(example)):
            raise ValueError
        return type(example)(_like(example[0], each) for each in value)
    kind = int | float if isinstance(example, float) else type(example)
    if isinstance(value, bool) != isinstance(example, bool) or not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    return type(example)(value)


def _text(value: Any) -> str:
    """As it is written in a configuration file."""
    return repr(list(value) if isinstance(value, tuple) else value)


# ---- the experiment ----


def experiment_of(settings: Settings, original: bool, origin: str) -> Experiment:
    """The experiment that the settings (all of them, as ``settings_of`` gives them) describe. InputError names the one that is not supported."""
    try:
        return _experiment({name: _typed(name, settings[name]) for name in ZOO}, original)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _experiment(settings: Settings, original: bool) -> Experiment:
    features = _features(settings)
    fpn, keypoints, masks = features == "fpn", settings["MODEL.KEYPOINT_ON"], settings["MODEL.MASK_ON"]
    require(not (keypoints and features == "c4"), "MODEL.KEYPOINT_ON is True, but MODEL.ROI_HEADS.NAME Res5ROIHeads has no keypoints")
    outside = settings["MODEL.RPN.BOUNDARY_THRESH"]
    require(outside < 0, f"MODEL.RPN.BOUNDARY_THRESH must be -1, which keeps all anchors, not {outside}")

    def section(name):
        return {key.removeprefix(f"{name}."): value for key, value in settings.items() if key.startswith(f"{name}.")}

    model, images, rpn, heads = section("MODEL"), section("INPUT"), section("MODEL.RPN"), section("MODEL.ROI_HEADS")
    box, mask, keypoint = (section(f"MODEL.ROI_{head}_HEAD") for head in ("BOX", "MASK", "KEYPOINT"))
    pools = [_pool(head) for head in ((box, box, box) if features == "c4" else (box, mask, keypoint))]  # of c4 the heads share res5 and its RoIs
    backbone = _backbone(settings, features, 0.0 if original else 1e-5)
    config = ModelConfig(
        num_classes=heads["NUM_CLASSES"],
        tasks=("boxes", *(["masks"] if masks else []), *(["keypoints"] if keypoints else [])),
        backbone=backbone,
        rpn=RPNConfig(
            anchor_sizes=_anchor_sizes(settings, fpn), aspect_ratios=tuple(_all_equal(settings, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")),
            convolutions=len(rpn["CONV_DIMS"]), foreground_iou=rpn["IOU_THRESHOLDS"][1], background_iou=rpn["IOU_THRESHOLDS"][0],
            samples_per_image=rpn["BATCH_SIZE_PER_IMAGE"], positive_fraction=rpn["POSITIVE_FRACTION"], smooth_l1_beta=rpn["SMOOTH_L1_BETA"],
            pre_nms_train=rpn["PRE_NMS_TOPK_TRAIN"], pre_nms_test=rpn["PRE_NMS_TOPK_TEST"], post_nms_train=rpn["POST_NMS_TOPK_TRAIN"],
            post_nms_test=rpn["POST_NMS_TOPK_TEST"], nms_iou=rpn["NMS_THRESH"], min_size=model["PROPOSAL_GENERATOR.MIN_SIZE"],
        ),
        roi=RoIConfig(
            levels=ROI_LEVELS[features], samples_per_image=heads["BATCH_SIZE_PER_IMAGE"],
            positive_fraction=heads["POSITIVE_FRACTION"], foreground_iou=heads["IOU_THRESHOLDS"][0],
        ),
        box=BoxHeadConfig(
            pool=pools[0], convolutions=box["NUM_CONV"], convolution_channels=box["CONV_DIM"], norm=NORMS[box["NORM"]] if box["NUM_CONV"] else "none",
            fully_connected=box["NUM_FC"], channels=box["FC_DIM"], delta_weights=box["BBOX_REG_WEIGHTS"], smooth_l1_beta=box["SMOOTH_L1_BETA"],
            score_threshold=heads["SCORE_THRESH_TEST"], nms_iou=heads["NMS_THRESH_TEST"], max_detections=settings["TEST.DETECTIONS_PER_IMAGE"],
        ),
        mask=MaskHeadConfig(
            pool=pools[1], layers=mask["NUM_CONV"], channels=mask["CONV_DIM"], norm=NORMS[mask["NORM"]], class_agnostic=mask["CLS_AGNOSTIC_MASK"],
        ),
        keypoint=KeypointHeadConfig(
            pool=pools[2], num_keypoints=keypoint["NUM_KEYPOINTS"], classes=tuple(range(heads["NUM_CLASSES"])) if keypoints else (0,),
            layers=len(keypoint["CONV_DIMS"]), channels=_all_equal(settings, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"),
        ),
        conventions=_conventions(model, [box, *([mask] if masks else []), *([keypoint] if keypoints else [])], original),
        channel_order=images["FORMAT"].lower(),
        pixel_mean=model["PIXEL_MEAN"],
        pixel_std=model["PIXEL_STD"],
    )  # fmt: skip
    data = DataConfig(
        dataset="data/coco", short_edge=tuple(images["MIN_SIZE_TRAIN"]), short_edge_test=images["MIN_SIZE_TEST"], long_edge=images["MAX_SIZE_TEST"],
        flip=images["RANDOM_FLIP"] == "horizontal", padding_divisor=32 if fpn else 1,
    )  # fmt: skip
    kind = "keypoint" if keypoints else "mask" if masks else "faster"
    depth = f"R_{model['RESNETS.DEPTH']}"
    if backbone.groups > 1:
        depth = f"X_{model['RESNETS.DEPTH']}_{backbone.groups}x{model['RESNETS.WIDTH_PER_GROUP']}d"
    return Experiment(name=f"{kind}_rcnn_{depth}_{features.upper()}", model=config, data=data)


def _features(settings):
    """backbone.features, once nothing is asked for that there is not."""
    for name, allowed in SUPPORTED.items():
        supported = " or ".join(map(_text, allowed))
        require(settings[name] in allowed, f"{name} is {_text(settings[name])}, but a model here can only have {supported}")
    features = next((name for name, expected in ARCHITECTURES.items() if all(settings[one] == expected[one] for one in TELLING)), None)
    require(features is not None, f"there is no architecture with {', '.join(f'{name} {_text(settings[name])}' for name in TELLING)} together")
    for name, value in ARCHITECTURES[features].items():
        require(settings[name] == value, f"{name} is {_text(settings[name])}, but with features {features} it must be {_text(value)}")
    return features


def _backbone(settings, features, epsilon):
    name, width = f"resnet{settings['MODEL.RESNETS.DEPTH']}", settings["MODEL.RESNETS.STEM_OUT_CHANNELS"]
    group_width, res2 = settings["MODEL.RESNETS.WIDTH_PER_GROUP"], width * (1 if name in BASIC else 4)
    require(width > 0 and group_width * 64 % width == 0,
            f"MODEL.RESNETS.WIDTH_PER_GROUP must be a multiple of a 64th of MODEL.RESNETS.STEM_OUT_CHANNELS {width}, not {group_width}")  # fmt: skip
    require(settings["MODEL.RESNETS.RES2_OUT_CHANNELS"] == res2,
            f"MODEL.RESNETS.RES2_OUT_CHANNELS must be {res2} after a stem of {width}, not {settings['MODEL.RESNETS.RES2_OUT_CHANNELS']}")  # fmt: skip
    return BackboneConfig(
        name=name, groups=settings["MODEL.RESNETS.NUM_GROUPS"], group_width=group_width * 64 // width, width=width, features=features,
        norm=NORMS[settings["MODEL.RESNETS.NORM"]], norm_epsilon=epsilon, freeze_stages=settings["MODEL.BACKBONE.FREEZE_AT"],
        stride_in_1x1=settings["MODEL.RESNETS.STRIDE_IN_1X1"], pyramid_channels=settings["MODEL.FPN.OUT_CHANNELS"],
        pyramid_norm=NORMS[settings["MODEL.FPN.NORM"]],
    )  # fmt: skip


def _anchor_sizes(settings, fpn):
    name = "MODEL.ANCHOR_GENERATOR.SIZES"
    sizes = settings[name]
    if not fpn:
        require(len(sizes) == 1, f"{name} must be one list of sizes for the one feature map, not {_text(sizes)}")
        return tuple(sizes[0])
    single = all(len(level) == 1 for level in sizes)
    require(single, f"{name} must have one size for each level of a pyramid, as {_text(ZOO[name])} has, not {_text(sizes)}")
    return tuple(size for level in sizes for size in level) * (len(PYRAMID) if len(sizes) == 1 else 1)


def _all_equal(settings, name):
    first, *others = settings[name]
    require(all(other == first for other in others), f"{name} must be equal throughout, not {_text(settings[name])}")
    return first


def _pool(head):
    size, samples = head["POOLER_RESOLUTION"], max(0, head["POOLER_SAMPLING_RATIO"])
    return BranchPoolConfig(size=size, sampling_ratio=samples, operation=POOLERS[head["POOLER_TYPE"]])


def _conventions(model, heads, original):
    aligned = {head["POOLER_TYPE"] == "ROIAlignV2" for head in heads if head["POOLER_TYPE"] != "ROIPool"} or {True}
    require(len(aligned) == 1, "MODEL.ROI_*_HEAD.POOLER_TYPE must be ROIAlign in all heads or ROIAlignV2 in all, not both")
    if original:
        return replace(DETECTRON, roi_half_pixel=aligned == {True})
    return replace(DETECTRON2, roi_half_pixel=aligned == {True}, anchor_offset=model["ANCHOR_GENERATOR.OFFSET"])


def backbone_experiment(tensors: Tensors, msra: bool, origin: str) -> Experiment:
    """Of a backbone alone: of MSRA, batch norm an affine map, BGR; else torchvision's, in Detectron2's names."""
    backbone = backbone_of(tensors, "stem.conv1.weight", lambda stage, number: f"res{stage}.{number}", origin)
    data, resnext = DataConfig(dataset="data/coco"), backbone.groups > 1
    if not msra:
        backbone = replace(backbone, stride_in_1x1=False)
        return Experiment(name=backbone.name, model=ModelConfig(tasks=(), backbone=backbone), data=data)
    backbone = replace(backbone, stride_in_1x1=not resnext, norm_epsilon=0.0)
    mean, std = ZOO["MODEL.PIXEL_MEAN"], (RESNEXT if resnext else ZOO)["MODEL.PIXEL_STD"]
    model = ModelConfig(tasks=(), backbone=backbone, channel_order="bgr", pixel_mean=mean, pixel_std=std)
    return Experiment(name=backbone.name, model=model, data=data)
