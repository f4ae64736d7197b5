"""Converts files of the original Detectron (Caffe2) to Detectron2's names and order of rows.

Covers ResNet and ResNeXt with frozen batch norm of any depth, alone (ImageNet weights of MSRA) or in a
detector with FPN, C4 or a dilated C5. The names are those of Detectron's modeling code and of Detectron2's
checkpoint.c2_model_loading.
"""

import re
from functools import partial

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights.param_map import Tensors

_ASPECT_RATIOS = 3  # per anchor size, in every published model
_EPSILON = 1e-5  # of Caffe2's batch norm

# Not part of a detector: the classifier of ImageNet, the optimiser's state, biases of the backbone's
# convolutions (zeros in files that were converted from Caffe) and the fixed kernel that enlarges keypoint
# maps.
_IGNORED = r"(fc1000|pred)_[wb]|.*_momentum|(conv1|res[2-5]_\d+_branch(1|2[abc]))_b|kps_score_[wb]"

_PARAMETERS = {  # by the end of the name; the first match counts
    "_bn_s": "norm.weight",
    "_bn_gamma": "norm.weight",
    "_bn_b": "norm.bias",
    "_bn_beta": "norm.bias",
    "_bn_rm": "norm.running_mean",
    "_bn_running_mean": "norm.running_mean",
    "_bn_riv": "norm.running_var",  # a variance, although it is called the inverse of one
    "_bn_running_var": "norm.running_var",
    "_w": "weight",
    "_b": "bias",
}
_LAYERS = (  # the name without that end
    (r"(?:res_)?conv1", r"stem.conv1"),
    (r"(res[2-5])_(\d+)_branch1", r"\1.\2.shortcut"),
    (r"(res[2-5])_(\d+)_branch2a", r"\1.\2.conv1"),
    (r"(res[2-5])_(\d+)_branch2b", r"\1.\2.conv2"),
    (r"(res[2-5])_(\d+)_branch2c", r"\1.\2.conv3"),
    (r"fpn_inner_res([2-5])_\d+_sum(?:_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res([2-5])_\d+_sum", r"backbone.fpn_output\1"),
    (r"conv_rpn(?:_fpn2)?", r"proposal_generator.rpn_head.conv"),  # of all levels, named after the finest
    (r"rpn_cls_logits(?:_fpn2)?", r"proposal_generator.rpn_head.objectness_logits"),
    (r"rpn_bbox_pred(?:_fpn2)?", r"proposal_generator.rpn_head.anchor_deltas"),
    (r"fc6", r"roi_heads.box_head.fc1"),
    (r"fc7", r"roi_heads.box_head.fc2"),
    (r"(cls_score|bbox_pred)", r"roi_heads.box_predictor.\1"),
    (r"_\[mask\]_(fcn\d+)", r"roi_heads.mask_head.mask_\1"),
    (r"conv5_mask", r"roi_heads.mask_head.deconv"),
    (r"mask_fcn_logits", r"roi_heads.mask_head.predictor"),
    (r"(conv_fcn\d+)", r"roi_heads.keypoint_head.\1"),
    (r"kps_(score_lowres)", r"roi_heads.keypoint_head.\1"),
)


def is_caffe2(tensors: Tensors) -> bool:
    """Returns whether tensors have the names of the original Detectron."""
    return "conv1_w" in tensors


def convert_to_detectron2(tensors: Tensors) -> Tensors:
    """Converts tensors to Detectron2's names and order of rows.

    The background class moves from the first to the last row of class scores, and is dropped from box deltas
    and masks. Anchors of a single feature map are reordered from (ratio, size) to (size, ratio). Every batch
    norm gets four vectors for an epsilon of 0: without statistics the mean is 0 and the variance 1; to a
        recorded variance
    Caffe2's epsilon of 1e-5 is added. Tensors that are not part of a detector are dropped.

    Args:
        tensors: of a detector, or of a backbone alone.

    Returns:
        Tensors by their names in Detectron2; those of a backbone alone have no prefix.

    Raises:
        InputError: names all tensors that are unknown; class-agnostic box regression; not three aspect
            ratios.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(_IGNORED, name)}
    names = {name: _rename(name) for name in tensors}
    unknown = [name for name, renamed in names.items() if renamed is None]
    if unknown:
        raise InputError(
            "supported are Faster, Mask and Keypoint R-CNN of the original Detectron with frozen batch norm, "
            f"which have no tensors {', '.join(unknown)}"
        )
    _check_class_specific(tensors)
    backbone, res5 = _backbone_prefixes(tensors)
    converted = {}
    for name, renamed in names.items():
        in_backbone = re.match(r"stem\.|res\d\.", renamed)
        prefix = res5 if renamed.startswith("res5.") else backbone if in_backbone else ""
        reorder = _REORDERED.get(name[:-2])
        converted[prefix + renamed] = reorder(tensors[name]) if reorder else tensors[name]
    return converted | _norm_statistics(converted)


def _rename(name: str) -> str | None:
    """Returns the name in Detectron2 without the backbone's prefix, or None for an unknown tensor."""
    for ending, parameter in _PARAMETERS.items():
        if name.endswith(ending):
            for pattern, replacement in _LAYERS:
                if match := re.fullmatch(pattern, name.removesuffix(ending)):
                    return f"{match.expand(replacement)}.{parameter}"
    return None


def _backbone_prefixes(tensors: Tensors) -> tuple[str, str]:
    """Returns the prefixes of the backbone's layers and of res5."""
    if any(name.startswith("fpn_") for name in tensors):
        return "backbone.bottom_up.", "backbone.bottom_up."
    if not {"conv_rpn_w", "cls_score_w"} & tensors.keys():
        return "", ""
    # C4 has res5 in place of a box head
    return "backbone.", "backbone." if "fc6_w" in tensors else "roi_heads."


def _norm_statistics(tensors: Tensors) -> Tensors:
    """Returns the mean and variance of every batch norm in converted tensors, for an epsilon of 0."""
    statistics = {}
    for name, scale in tensors.items():
        if name.endswith(".norm.weight"):
            mean, var = (name.replace(".weight", f".running_{statistic}") for statistic in ("mean", "var"))
            statistics[mean] = tensors.get(mean, np.zeros_like(scale))
            statistics[var] = tensors[var] + _EPSILON if var in tensors else np.ones_like(scale)
    return statistics


def _check_class_specific(tensors: Tensors) -> None:
    if {"bbox_pred_w", "cls_score_w"} <= tensors.keys():
        deltas, classes = len(tensors["bbox_pred_w"]), len(tensors["cls_score_w"])
        if deltas == 8 and classes > 2:  # one row of deltas each for background and foreground
            raise InputError(
                f"bbox_pred_w has 8 rows for {classes} classes: class-agnostic boxes are not supported"
            )


def _move_background_last(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, -1, axis=0)


def _drop_background(rows: np.ndarray, *, per_class: int) -> np.ndarray:
    return rows[per_class:] if len(rows) > per_class else rows  # a single row is a class-agnostic mask


def _order_by_size(rows: np.ndarray, *, per_anchor: int) -> np.ndarray:
    """Reorders rows of (ratio, size) anchors to (size, ratio)."""
    if len(rows) % (_ASPECT_RATIOS * per_anchor):
        raise InputError(
            f"anchors must have {_ASPECT_RATIOS} aspect ratios per size: {len(rows)} rows do not fit"
        )
    anchors = rows.reshape(_ASPECT_RATIOS, -1, per_anchor, *rows.shape[1:])
    return anchors.swapaxes(0, 1).reshape(rows.shape)


# Layers, by their names in Caffe2, whose rows have another order in Detectron2. With FPN, where the RPN's
# names end in _fpn2, a level has anchors of one size and nothing moves.
_REORDERED = {
    "cls_score": _move_background_last,
    "bbox_pred": partial(_drop_background, per_class=4),
    "mask_fcn_logits": partial(_drop_background, per_class=1),
    "rpn_cls_logits": partial(_order_by_size, per_anchor=1),
    "rpn_bbox_pred": partial(_order_by_size, per_anchor=4),
}
