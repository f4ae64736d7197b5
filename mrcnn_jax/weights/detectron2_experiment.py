"""Translates Detectron2's settings to an experiment; also the original Detectron's, and backbones alone."""

from dataclasses import replace

from mrcnn_jax.config import (
    DETECTRON,
    DETECTRON2,
    AugmentationConfig,
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    Conventions,
    DataConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIConfig,
    RPNConfig,
)
from mrcnn_jax.config.model import BASIC, ROI_LEVELS
from mrcnn_jax.config.validation import require
from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.backbones import infer_backbone
from mrcnn_jax.weights.detectron2_settings import (
    ARCHITECTURES,
    DECISIVE,
    NORMS,
    POOLERS,
    PYRAMID_LEVELS,
    RESNEXT,
    SUPPORTED,
    ZOO,
    Settings,
)
from mrcnn_jax.weights.detectron2_yaml import cast_settings, to_text
from mrcnn_jax.weights.param_map import Tensors

_HEADS = ("BOX", "MASK", "KEYPOINT")


def make_experiment(settings: Settings, is_detectron: bool, origin: str) -> Experiment:
    """Translates settings to an experiment.

    Args:
        settings: all of them, as ``infer_settings`` returns them, with those of a file in place of some.
        is_detectron: the model is the original Detectron's.
        origin: name of the file, for messages.

    Raises:
        InputError: names a setting that is invalid or not supported.
    """
    try:
        return _make_experiment(cast_settings(settings), is_detectron)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error


def _make_experiment(settings: Settings, is_detectron: bool) -> Experiment:
    features = _determine_features(settings)
    has_keypoints, has_masks = settings["MODEL.KEYPOINT_ON"], settings["MODEL.MASK_ON"]
    require(not (has_keypoints and features == "c4"),
            "MODEL.KEYPOINT_ON is True, but MODEL.ROI_HEADS.NAME Res5ROIHeads has no keypoint head")
    outside = settings["MODEL.RPN.BOUNDARY_THRESH"]
    require(outside < 0, f"MODEL.RPN.BOUNDARY_THRESH must be -1, which keeps all anchors, not {outside}")

    resnet, heads = _section(settings, "MODEL.RESNETS"), _section(settings, "MODEL.ROI_HEADS")
    images = _section(settings, "INPUT")
    box, mask, keypoint = (_section(settings, f"MODEL.ROI_{head}_HEAD") for head in _HEADS)
    mask_pool = box if features == "c4" else mask  # C4's branches share the RoIs
    pooled = [box, *([mask_pool] if has_masks else []), *([keypoint] if has_keypoints else [])]
    model = ModelConfig(
        num_classes=heads["NUM_CLASSES"],
        tasks=("boxes", *(["masks"] if has_masks else []), *(["keypoints"] if has_keypoints else [])),
        backbone=_make_backbone(settings, features, 0.0 if is_detectron else 1e-5),
        rpn=_make_rpn(settings, features),
        roi=RoIConfig(
            levels=ROI_LEVELS[features], samples_per_image=heads["BATCH_SIZE_PER_IMAGE"],
            positive_fraction=heads["POSITIVE_FRACTION"], foreground_iou=heads["IOU_THRESHOLDS"][0],
        ),
        pool=PoolConfig(operation=POOLERS[box["POOLER_TYPE"]], sampling_ratio=_sampling_ratio(box)),
        box=_make_box_head(settings, box, heads),
        mask=MaskHeadConfig(
            pool=_make_pool(mask_pool, box), layers=mask["NUM_CONV"], channels=mask["CONV_DIM"],
            norm=NORMS[mask["NORM"]], class_agnostic=mask["CLS_AGNOSTIC_MASK"],
        ),
        keypoint=KeypointHeadConfig(
            pool=_make_pool(keypoint, box), num_keypoints=keypoint["NUM_KEYPOINTS"],
            classes=tuple(range(heads["NUM_CLASSES"])) if has_keypoints else (0,),
            layers=len(keypoint["CONV_DIMS"]),
            channels=_common_value(settings, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"),
        ),
        conventions=_make_conventions(settings, pooled, is_detectron),
        channel_order=images["FORMAT"].lower(),
        pixel_mean=settings["MODEL.PIXEL_MEAN"],
        pixel_std=settings["MODEL.PIXEL_STD"],
    )  # fmt: skip
    data = DataConfig(
        dataset="data/coco", short_edge=tuple(images["MIN_SIZE_TRAIN"]),
        short_edge_test=images["MIN_SIZE_TEST"], long_edge=images["MAX_SIZE_TEST"],
        augment=AugmentationConfig(flip=0.5 * (images["RANDOM_FLIP"] == "horizontal")),
        padding_divisor=32 if features == "fpn" else 1,
    )  # fmt: skip
    kind = "keypoint" if has_keypoints else "mask" if has_masks else "faster"
    depth = f"R_{resnet['DEPTH']}"
    if resnet["NUM_GROUPS"] > 1:
        depth = f"X_{resnet['DEPTH']}_{resnet['NUM_GROUPS']}x{resnet['WIDTH_PER_GROUP']}d"
    return Experiment(name=f"{kind}_rcnn_{depth}_{features.upper()}", model=model, data=data)


def _section(settings: Settings, name: str) -> Settings:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}


def _determine_features(settings: Settings) -> str:
    """Returns backbone.features, after checking that all values are supported."""
    for name, allowed in SUPPORTED.items():
        given, supported = to_text(settings[name]), " or ".join(map(to_text, allowed))
        require(settings[name] in allowed, f"{name} {given} is not supported: it must be {supported}")
    decisive = {name: settings[name] for name in DECISIVE}
    features = next((name for name in ARCHITECTURES if decisive.items() <= ARCHITECTURES[name].items()), None)
    combination = ", ".join(f"{name} {to_text(value)}" for name, value in decisive.items())
    require(features is not None, f"the combination of {combination} is not supported")
    for name, value in ARCHITECTURES[features].items():
        require(settings[name] == value,
                f"{name} must be {to_text(value)} with features {features}, not {to_text(settings[name])}")
    return features


def _make_backbone(settings: Settings, features: str, epsilon: float) -> BackboneConfig:
    resnet = _section(settings, "MODEL.RESNETS")
    name, width = f"resnet{resnet['DEPTH']}", resnet["STEM_OUT_CHANNELS"]
    group_width, res2_width = resnet["WIDTH_PER_GROUP"], width * (1 if name in BASIC else 4)
    require(width > 0 and group_width * 64 % width == 0,
            "MODEL.RESNETS.WIDTH_PER_GROUP must be a multiple of a 64th of MODEL.RESNETS.STEM_OUT_CHANNELS "
            f"{width}, not {group_width}")
    require(resnet["RES2_OUT_CHANNELS"] == res2_width,
            f"MODEL.RESNETS.RES2_OUT_CHANNELS must be {res2_width} after a stem of {width} channels, "
            f"not {resnet['RES2_OUT_CHANNELS']}")
    return BackboneConfig(
        name=name, width=width, groups=resnet["NUM_GROUPS"], group_width=group_width * 64 // width,
        features=features, norm=NORMS[resnet["NORM"]], norm_epsilon=epsilon,
        freeze_stages=settings["MODEL.BACKBONE.FREEZE_AT"], stride_in_1x1=resnet["STRIDE_IN_1X1"],
        pyramid_channels=settings["MODEL.FPN.OUT_CHANNELS"], pyramid_norm=NORMS[settings["MODEL.FPN.NORM"]],
    )  # fmt: skip


def _make_rpn(settings: Settings, features: str) -> RPNConfig:
    rpn = _section(settings, "MODEL.RPN")
    background_iou, foreground_iou = rpn["IOU_THRESHOLDS"]
    return RPNConfig(
        anchor_sizes=_anchor_sizes(settings, features == "fpn"),
        aspect_ratios=tuple(_common_value(settings, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")),
        convolutions=len(rpn["CONV_DIMS"]), foreground_iou=foreground_iou, background_iou=background_iou,
        samples_per_image=rpn["BATCH_SIZE_PER_IMAGE"], positive_fraction=rpn["POSITIVE_FRACTION"],
        smooth_l1_beta=rpn["SMOOTH_L1_BETA"], pre_nms_train=rpn["PRE_NMS_TOPK_TRAIN"],
        pre_nms_test=rpn["PRE_NMS_TOPK_TEST"], post_nms_train=rpn["POST_NMS_TOPK_TRAIN"],
        post_nms_test=rpn["POST_NMS_TOPK_TEST"], nms_iou=rpn["NMS_THRESH"],
        min_size=settings["MODEL.PROPOSAL_GENERATOR.MIN_SIZE"],
    )  # fmt: skip


def _make_box_head(settings: Settings, box: Settings, heads: Settings) -> BoxHeadConfig:
    return BoxHeadConfig(
        pool=_make_pool(box, box), convolutions=box["NUM_CONV"], convolution_channels=box["CONV_DIM"],
        norm=NORMS[box["NORM"]] if box["NUM_CONV"] else "none", fully_connected=box["NUM_FC"],
        channels=box["FC_DIM"], delta_weights=box["BBOX_REG_WEIGHTS"], smooth_l1_beta=box["SMOOTH_L1_BETA"],
        score_threshold=heads["SCORE_THRESH_TEST"], nms_iou=heads["NMS_THRESH_TEST"],
        max_detections=settings["TEST.DETECTIONS_PER_IMAGE"],
    )  # fmt: skip


def _anchor_sizes(settings: Settings, fpn: bool) -> tuple[float, ...]:
    name = "MODEL.ANCHOR_GENERATOR.SIZES"
    sizes, given = settings[name], to_text(settings[name])
    if not fpn:
        require(len(sizes) == 1, f"{name} must be one list of sizes for the one feature map, not {given}")
        return tuple(sizes[0])
    require(all(len(level) == 1 for level in sizes),
            f"{name} must have one size for each level of a pyramid, as in {to_text(ZOO[name])}, not {given}")
    return tuple(size for level in sizes for size in level) * (len(PYRAMID_LEVELS) if len(sizes) == 1 else 1)


def _common_value(settings: Settings, name: str):
    """Returns the value that all elements of a setting have; InputError if they differ."""
    first, *others = settings[name]
    equal = all(other == first for other in others)
    require(equal, f"{name} must have equal elements, not {to_text(settings[name])}")
    return first


def _make_pool(head: Settings, shared: Settings) -> BranchPoolConfig:
    """Returns the pooling of a branch, which inherits what it has in common with the box branch."""
    same_type, ratio = head["POOLER_TYPE"] == shared["POOLER_TYPE"], _sampling_ratio(head)
    return BranchPoolConfig(
        size=head["POOLER_RESOLUTION"],
        operation="inherit" if same_type else POOLERS[head["POOLER_TYPE"]],
        sampling_ratio=None if ratio == _sampling_ratio(shared) else ratio,
    )


def _sampling_ratio(head: Settings) -> int:
    return max(0, head["POOLER_SAMPLING_RATIO"])


def _make_conventions(settings: Settings, heads: list[Settings], is_detectron: bool) -> Conventions:
    types = {head["POOLER_TYPE"] for head in heads} - {"ROIPool"}
    require(len(types) <= 1,
            "MODEL.ROI_*_HEAD.POOLER_TYPE must be ROIAlign for all heads or ROIAlignV2 for all, not both")
    half_pixel = "ROIAlign" not in types
    if is_detectron:
        return replace(DETECTRON, roi_half_pixel=half_pixel)
    offset = settings["MODEL.ANCHOR_GENERATOR.OFFSET"]
    return replace(DETECTRON2, roi_half_pixel=half_pixel, anchor_offset=offset)


def make_backbone_experiment(tensors: Tensors, is_msra: bool, origin: str) -> Experiment:
    """Infers the experiment of a backbone alone, under Detectron2's names.

    Args:
        tensors: of the backbone.
        is_msra: its weights are MSRA's, for BGR images and with batch norm as an affine map; else
            torchvision's.
        origin: name of the file, for messages.
    """
    def block_prefix(stage, number):
        return f"res{stage}.{number}"

    backbone = infer_backbone(tensors, "stem.conv1.weight", block_prefix, origin)
    is_resnext = backbone.groups > 1
    if is_msra:
        model = ModelConfig(
            tasks=(),
            backbone=replace(backbone, stride_in_1x1=not is_resnext, norm_epsilon=0.0),
            channel_order="bgr",
            pixel_mean=ZOO["MODEL.PIXEL_MEAN"],
            pixel_std=(RESNEXT if is_resnext else ZOO)["MODEL.PIXEL_STD"],
        )
    else:
        model = ModelConfig(tasks=(), backbone=replace(backbone, stride_in_1x1=False))
    return Experiment(name=backbone.name, model=model, data=DataConfig(dataset="data/coco"))
