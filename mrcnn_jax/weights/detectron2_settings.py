"""Detectron2's settings: supported values, those of its model zoo, and those that tensors imply."""

from typing import Any

from mrcnn_jax.config.model import BASIC
from mrcnn_jax.weights.backbones import infer_backbone
from mrcnn_jax.weights.param_map import Tensors

Settings = dict[str, Any]
"""Values by their full names, such as "MODEL.RPN.NMS_THRESH"."""

NORMS = {"FrozenBN": "frozen", "BN": "batch", "SyncBN": "batch", "GN": "group", "": "none"}
"""Our name of each normalisation."""
POOLERS = {"ROIAlignV2": "roi_align", "ROIAlign": "roi_align", "ROIPool": "roi_pool"}
"""Our name of each RoI operation."""
_HEAD_NORMS = ("", "BN", "SyncBN", "GN")


def _section(name: str, **values: Any) -> Settings:
    return {f"{name}.{key}": value for key, value in values.items()}


SUPPORTED = {
    **_section("INPUT", FORMAT=("BGR", "RGB"), RANDOM_FLIP=("horizontal", "none")),
    **_section("INPUT", MIN_SIZE_TRAIN_SAMPLING=("choice",)),
    **_section("MODEL", LOAD_PROPOSALS=(False,), META_ARCHITECTURE=("GeneralizedRCNN",)),
    **_section("MODEL.ANCHOR_GENERATOR", NAME=("DefaultAnchorGenerator",)),
    **_section("MODEL.BACKBONE", NAME=("build_resnet_fpn_backbone", "build_resnet_backbone")),
    **_section("MODEL.FPN", FUSE_TYPE=("sum",), NORM=_HEAD_NORMS),
    **_section("MODEL.PROPOSAL_GENERATOR", NAME=("RPN",)),
    **_section(
        "MODEL.RESNETS", DEFORM_ON_PER_STAGE=([False] * 4,), NORM=("FrozenBN", "BN", "SyncBN", "GN"),
        RES5_DILATION=(1, 2),
    ),
    **_section(
        "MODEL.ROI_BOX_HEAD", BBOX_REG_LOSS_TYPE=("smooth_l1",), BBOX_REG_LOSS_WEIGHT=(1.0,),
        CLS_AGNOSTIC_BBOX_REG=(False,), NAME=("FastRCNNConvFCHead", ""), NORM=_HEAD_NORMS,
        POOLER_TYPE=tuple(POOLERS), TRAIN_ON_PRED_BOXES=(False,), USE_FED_LOSS=(False,),
        USE_SIGMOID_CE=(False,),
    ),
    **_section(
        "MODEL.ROI_HEADS", IOU_LABELS=([0, 1],), NAME=("StandardROIHeads", "Res5ROIHeads"),
        PROPOSAL_APPEND_GT=(True,),
    ),
    **_section(
        "MODEL.ROI_KEYPOINT_HEAD", LOSS_WEIGHT=(1.0,), NAME=("KRCNNConvDeconvUpsampleHead",),
        NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS=(True,), POOLER_TYPE=tuple(POOLERS),
    ),
    **_section(
        "MODEL.ROI_MASK_HEAD", NAME=("MaskRCNNConvUpsampleHead",), NORM=_HEAD_NORMS,
        POOLER_TYPE=tuple(POOLERS),
    ),
    **_section(
        "MODEL.RPN", BBOX_REG_LOSS_TYPE=("smooth_l1",), BBOX_REG_LOSS_WEIGHT=(1.0,),
        BBOX_REG_WEIGHTS=((1.0, 1.0, 1.0, 1.0),), HEAD_NAME=("StandardRPNHead",), IOU_LABELS=([0, -1, 1],),
        LOSS_WEIGHT=(1.0,),
    ),
}
"""Supported values of settings that we cannot represent in full; the first is the model zoo's."""

PYRAMID_LEVELS = ["p2", "p3", "p4", "p5", "p6"]


ARCHITECTURES = {
    features: {
        "MODEL.BACKBONE.NAME": backbone,
        "MODEL.ROI_HEADS.NAME": heads,
        "MODEL.RESNETS.RES5_DILATION": dilation,
        "MODEL.RESNETS.OUT_FEATURES": stages,
        "MODEL.RPN.IN_FEATURES": PYRAMID_LEVELS if features == "fpn" else stages,
        "MODEL.ROI_HEADS.IN_FEATURES": PYRAMID_LEVELS[:4] if features == "fpn" else stages,
    }
    for features, backbone, heads, dilation, stages in (
        ("fpn", "build_resnet_fpn_backbone", "StandardROIHeads", 1, ["res2", "res3", "res4", "res5"]),
        ("c4", "build_resnet_backbone", "Res5ROIHeads", 1, ["res4"]),
        ("c5", "build_resnet_backbone", "StandardROIHeads", 1, ["res5"]),
        ("dc5", "build_resnet_backbone", "StandardROIHeads", 2, ["res5"]),
    )
}
"""Settings that belong to each backbone.features."""
DECISIVE = ("MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.RESNETS.RES5_DILATION")
"""Those of the settings that determine backbone.features."""


ZOO = {
    **{name: values[0] for name, values in SUPPORTED.items()},
    **ARCHITECTURES["fpn"],
    **_section("INPUT", MAX_SIZE_TEST=1333, MIN_SIZE_TEST=800, MIN_SIZE_TRAIN=[640, 672, 704, 736, 768, 800]),
    **_section("TEST", DETECTIONS_PER_IMAGE=100),
    **_section("MODEL", KEYPOINT_ON=False, MASK_ON=False),
    **_section("MODEL", PIXEL_MEAN=(103.53, 116.28, 123.675), PIXEL_STD=(1.0, 1.0, 1.0)),
    **_section("MODEL.BACKBONE", FREEZE_AT=2),
    **_section(
        "MODEL.RESNETS", DEPTH=50, NUM_GROUPS=1, WIDTH_PER_GROUP=64, STEM_OUT_CHANNELS=64,
        RES2_OUT_CHANNELS=256, STRIDE_IN_1X1=True,
    ),
    **_section("MODEL.FPN", OUT_CHANNELS=256),
    **_section(
        "MODEL.ANCHOR_GENERATOR", SIZES=[[32.0], [64.0], [128.0], [256.0], [512.0]], OFFSET=0.0,
        ASPECT_RATIOS=[[0.5, 1.0, 2.0]],
    ),
    **_section("MODEL.PROPOSAL_GENERATOR", MIN_SIZE=0.0),
    **_section(
        "MODEL.RPN", CONV_DIMS=[-1], BOUNDARY_THRESH=-1, IOU_THRESHOLDS=(0.3, 0.7), BATCH_SIZE_PER_IMAGE=256,
        POSITIVE_FRACTION=0.5, SMOOTH_L1_BETA=0.0, NMS_THRESH=0.7, PRE_NMS_TOPK_TRAIN=2000,
        PRE_NMS_TOPK_TEST=1000, POST_NMS_TOPK_TRAIN=1000, POST_NMS_TOPK_TEST=1000,
    ),
    **_section(
        "MODEL.ROI_HEADS", NUM_CLASSES=80, IOU_THRESHOLDS=(0.5,), BATCH_SIZE_PER_IMAGE=512,
        POSITIVE_FRACTION=0.25, SCORE_THRESH_TEST=0.05, NMS_THRESH_TEST=0.5,
    ),
    **_section(
        "MODEL.ROI_BOX_HEAD", POOLER_RESOLUTION=7, POOLER_SAMPLING_RATIO=0, NUM_CONV=0, CONV_DIM=256,
        NUM_FC=2, FC_DIM=1024, SMOOTH_L1_BETA=0.0, BBOX_REG_WEIGHTS=(10.0, 10.0, 5.0, 5.0),
    ),
    **_section(
        "MODEL.ROI_MASK_HEAD", POOLER_RESOLUTION=14, POOLER_SAMPLING_RATIO=0, NUM_CONV=4, CONV_DIM=256,
        CLS_AGNOSTIC_MASK=False,
    ),
    **_section(
        "MODEL.ROI_KEYPOINT_HEAD", POOLER_RESOLUTION=14, POOLER_SAMPLING_RATIO=0, CONV_DIMS=[512] * 8,
        NUM_KEYPOINTS=17,
    ),
}
"""All settings that are read, with the values of the model zoo's Faster R-CNN with FPN. They are examples of
the types too: a list may have any number of such values, a tuple exactly as many."""

_ONE_LEVEL = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32.0, 64.0, 128.0, 256.0, 512.0]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
}
_C4 = {
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
}
_KEYPOINTS = {
    "MODEL.KEYPOINT_ON": True,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1500,
}
RESNEXT = {"MODEL.PIXEL_STD": (57.375, 57.12, 58.395), "MODEL.RESNETS.STRIDE_IN_1X1": False}
"""Settings of the model zoo's ResNeXts."""
_DETECTRON = {
    "MODEL.PIXEL_MEAN": (102.9801, 115.9465, 122.7717),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.SMOOTH_L1_BETA": 1 / 9,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    **{f"MODEL.ROI_{head}_HEAD.POOLER_TYPE": "ROIAlign" for head in ("BOX", "MASK", "KEYPOINT")},
    **{f"MODEL.ROI_{head}_HEAD.POOLER_SAMPLING_RATIO": 2 for head in ("BOX", "MASK", "KEYPOINT")},
}

_ROWS = {  # settings that are the number of rows of a tensor
    "MODEL.FPN.OUT_CHANNELS": "backbone.fpn_lateral2.weight",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "roi_heads.box_head.conv1.weight",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "roi_heads.box_head.fc1.weight",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "roi_heads.keypoint_head.score_lowres.bias",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "roi_heads.mask_head.deconv.bias",
}
_LAYER_COUNTS = {
    "MODEL.ROI_BOX_HEAD.NUM_CONV": "roi_heads.box_head.conv",
    "MODEL.ROI_BOX_HEAD.NUM_FC": "roi_heads.box_head.fc",
}
_LAYER_NORMS = {
    "MODEL.FPN.NORM": "backbone.fpn_lateral2",
    "MODEL.ROI_BOX_HEAD.NORM": "roi_heads.box_head.conv1",
    "MODEL.ROI_MASK_HEAD.NORM": "roi_heads.mask_head.mask_fcn1",
}


def infer_settings(tensors: Tensors, is_detectron: bool, origin: str) -> Settings:
    """Infers all settings from tensors: their shapes, and otherwise the model zoo's values for such a model.

    Detectors with group norm are assumed to be the zoo's, and a detector on res5 alone to be a dilated one.

    Args:
        tensors: of a detector, under Detectron2's names.
        is_detectron: they come from the original Detectron, whose code fixed some of the values.
        origin: name of the file, for messages.

    Raises:
        InputError: the backbone is not a ResNet or ResNeXt.
    """
    c4, fpn = "roi_heads.res5.0.conv1.weight" in tensors, "backbone.fpn_lateral2.weight" in tensors
    settings = ZOO | _infer_backbone_settings(tensors, c4, fpn, origin) | _infer_head_settings(tensors)
    if settings["MODEL.RESNETS.NUM_GROUPS"] > 1:
        settings |= RESNEXT
    if "roi_heads.keypoint_head.score_lowres.weight" in tensors:
        channels = [_rows(tensors, layer) for layer in _numbered(tensors, "roi_heads.keypoint_head.conv_fcn")]
        settings |= _KEYPOINTS | {"MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": channels or [512]}
    elif is_detectron:
        settings["INPUT.MIN_SIZE_TRAIN"] = [800]
    if is_detectron:
        settings |= _DETECTRON
    if not fpn:
        settings |= ARCHITECTURES["c4" if c4 else "dc5"] | _ONE_LEVEL | (_C4 if c4 else {})
    if settings["MODEL.MASK_ON"]:
        settings["MODEL.ROI_MASK_HEAD.NUM_CONV"] = len(_numbered(tensors, "roi_heads.mask_head.mask_fcn"))
    return settings


def read_stored_anchors(tensors: Tensors) -> Settings:
    """Returns the sizes and aspect ratios of anchors, which most files of Detectron2 hold for each level."""
    names = (f"proposal_generator.anchor_generator.cell_anchors.{level}" for level in range(10))
    cells = [tensors[name] for name in names if name in tensors]
    sizes, ratios = [], []
    for cell in cells:
        if cell.ndim != 2 or cell.shape[1] != 4 or not (cell[:, 2:] > cell[:, :2]).all():
            return {}
        width, height = (cell[:, 2:] - cell[:, :2]).T
        ratios.append(list(dict.fromkeys(float(f"{ratio:.4g}") for ratio in height / width)))
        sizes.append([float(f"{area**0.5:.5g}") for area in (width * height)[:: len(ratios[-1])]])
    return _section("MODEL.ANCHOR_GENERATOR", SIZES=sizes, ASPECT_RATIOS=ratios) if cells else {}


def _infer_backbone_settings(tensors: Tensors, c4: bool, fpn: bool, origin: str) -> Settings:
    prefix = "backbone.bottom_up." if fpn else "backbone."

    def block_prefix(stage, number):
        return f"{'roi_heads.' if c4 and stage == 5 else prefix}res{stage}.{number}"

    backbone = infer_backbone(tensors, f"{prefix}stem.conv1.weight", block_prefix, origin)
    group_norm = _norm(tensors, f"{prefix}stem.conv1") == "GN"
    trained_norm = _norm(tensors, _LAYER_NORMS["MODEL.FPN.NORM"]) == "SyncBN"
    return _section(
        "MODEL.RESNETS",
        DEPTH=int(backbone.name.removeprefix("resnet")),
        NORM="GN" if group_norm else "SyncBN" if trained_norm else "FrozenBN",
        NUM_GROUPS=backbone.groups,
        RES2_OUT_CHANNELS=backbone.width * (1 if backbone.name in BASIC else 4),
        STEM_OUT_CHANNELS=backbone.width,
        STRIDE_IN_1X1=not group_norm,
        WIDTH_PER_GROUP=backbone.group_width * backbone.width // 64,
    )


def _infer_head_settings(tensors: Tensors) -> Settings:
    predictor, masks = "roi_heads.box_predictor", "roi_heads.mask_head.predictor.weight"
    settings = {name: _rows(tensors, tensor) for name, tensor in _ROWS.items() if tensor in tensors}
    settings |= {name: len(_numbered(tensors, layer)) for name, layer in _LAYER_COUNTS.items()}
    settings |= {name: _norm(tensors, layer) for name, layer in _LAYER_NORMS.items()}
    settings["MODEL.MASK_ON"] = masks in tensors
    rpn_convolutions = len(_numbered(tensors, "proposal_generator.rpn_head.conv.conv"))
    settings["MODEL.RPN.CONV_DIMS"] = [-1] * max(1, rpn_convolutions)
    if f"{predictor}.cls_score.weight" in tensors:
        classes = _rows(tensors, f"{predictor}.cls_score.weight") - 1
        agnostic_boxes = classes > 1 and _rows(tensors, f"{predictor}.bbox_pred.weight") == 4
        settings["MODEL.ROI_HEADS.NUM_CLASSES"] = classes
        settings["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] = agnostic_boxes
        settings["MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK"] = classes > 1 and _rows(tensors, masks) == 1
    return settings


def _rows(tensors: Tensors, name: str) -> int:
    return tensors[name].shape[0] if name in tensors else 0


def _numbered(tensors: Tensors, layer: str) -> list[str]:
    """Returns the names of the weights of numbered layers, such as conv1, conv2, ..."""
    return [name for number in range(100) if (name := f"{layer}{number}.weight") in tensors]


def _norm(tensors: Tensors, layer: str) -> str:
    """Returns Detectron2's name of the normalisation after a layer; SyncBN stands for any batch norm."""
    if f"{layer}.norm.weight" not in tensors:
        return ""
    return "SyncBN" if f"{layer}.norm.running_mean" in tensors else "GN"
