"""Tensors of the original Detectron (Caffe2) -> Detectron2's names and order of rows.

Covers ResNet and ResNeXt with frozen batch norm of any depth, alone (the ImageNet files) or under a detector with FPN, C4 or a dilated C5.
Names: the original's modeling code and Detectron2's checkpoint.c2_model_loading.
"""

import re
from functools import partial

import numpy as np

from mrcnn_jax.errors import InputError

_ASPECT_RATIOS = 3  # of the anchors at each size, in every published model
_EPSILON = 1e-5  # of Caffe2's batch norm

# What is no part of a detector: the classifier of ImageNet, the optimiser's state, and biases of the backbone's convolutions. Files that were
# converted from Caffe hold these, zeros wherever Caffe's network has none, and neither library adds them. The last one is the fixed kernel
# that enlarges keypoint maps.
_DROPPED = r"(fc1000|pred)_[wb]|.*_momentum|(conv1|res[2-5]_\d+_branch(1|2[abc]))_b|kps_score_[wb]"

_PARAMETERS = {  # the end of a name; of two that fit the first counts
    "_bn_s": "norm.weight",
    "_bn_gamma": "norm.weight",
    "_bn_b": "norm.bias",
    "_bn_beta": "norm.bias",
    "_bn_rm": "norm.running_mean",
    "_bn_running_mean": "norm.running_mean",
    "_bn_riv": "norm.running_var",  # a variance, for all its name (running inverse variance)
    "_bn_running_var": "norm.running_var",
    "_w": "weight",
    "_b": "bias",
}
_LAYERS = (  # what stands before it
    (r"(?:res_)?conv1", r"stem.conv1"),
    (r"(res[2-5])_(\d+)_branch1", r"\1.\2.shortcut"),
    (r"(res[2-5])_(\d+)_branch2a", r"\1.\2.conv1"),
    (r"(res[2-5])_(\d+)_branch2b", r"\1.\2.conv2"),
    (r"(res[2-5])_(\d+)_branch2c", r"\1.\2.conv3"),
    (r"fpn_inner_res([2-5])_\d+_sum(?:_lateral)?", r"backbone.fpn_lateral\1"),
    (r"fpn_res([2-5])_\d+_sum", r"backbone.fpn_output\1"),
    (r"conv_rpn(?:_fpn2)?", r"proposal_generator.rpn_head.conv"),  # one head for all levels, named after the finest
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


def is_detectron1(tensors: dict[str, np.ndarray]) -> bool:
    """Whether the tensors of a file have the original Detectron's names."""
    return "conv1_w" in tensors


def to_detectron2(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as Detectron2 names and orders them.

    Args:
        tensors: name in Caffe2 to array, a detector or a backbone alone.

    Returns:
        Name in Detectron2 to array, without a prefix for a backbone alone. Of class scores the background's row goes last, of box deltas and
        masks it goes. The anchors of a single feature map, in the original all sizes of the first ratio and so on, are put size by size.
        Every batch norm has four vectors and is meant for epsilon 0: with scale and bias alone mean is 0 and variance 1, and a variance
        that the file does hold has Caffe2's epsilon of 1e-5 added. The classifier of ImageNet, momenta and biases of the backbone's
        convolutions are dropped.

    Raises:
        InputError: naming every tensor that no rule knows; class-agnostic box regression; anchors that are not of three aspect ratios.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(_DROPPED, name)}
    names = {name: _rename(name) for name in tensors}
    unknown = [name for name, renamed in names.items() if renamed is None]
    if unknown:
        raise InputError(f"Of the original Detectron only Mask R-CNN with frozen batch norm is supported, which has no {', '.join(unknown)}.")
    _check_box_deltas(tensors)
    backbone, res5 = _prefixes(tensors)
    converted = {}
    for name, renamed in names.items():
        prefix = res5 if renamed.startswith("res5.") else backbone if re.match(r"stem\.|res\d\.", renamed) else ""
        converted[prefix + renamed] = _ROWS.get(name[:-2], _unchanged)(tensors[name])
    return converted | _statistics(converted)


def _rename(name: str) -> str | None:
    """Its name in Detectron2, up to the backbone's prefix; None for an unknown one."""
    for ending, parameter in _PARAMETERS.items():
        if name.endswith(ending):
            for pattern, replacement in _LAYERS:
                if match := re.fullmatch(pattern, name.removesuffix(ending)):
                    return f"{match.expand(replacement)}.{parameter}"
    return None


def _prefixes(tensors: dict[str, np.ndarray]) -> tuple[str, str]:
    """What comes before the names of the backbone's layers, and before those of its last stage."""
    if any(name.startswith("fpn_") for name in tensors):
        return "backbone.bottom_up.", "backbone.bottom_up."
    if not {"conv_rpn_w", "cls_score_w"} & tensors.keys():
        return "", ""
    return "backbone.", "backbone." if "fc6_w" in tensors else "roi_heads."  # C4 has res5 in place of a box head


def _statistics(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and variance of every batch norm in converted tensors, for epsilon 0."""
    statistics = {}
    for name, scale in tensors.items():
        if name.endswith(".norm.weight"):
            mean, var = (name.replace(".weight", f".running_{statistic}") for statistic in ("mean", "var"))
            statistics[mean] = tensors.get(mean, np.zeros_like(scale))
            statistics[var] = tensors[var] + _EPSILON if var in tensors else np.ones_like(scale)
    return statistics


def _check_box_deltas(tensors: dict[str, np.ndarray]) -> None:
    if {"bbox_pred_w", "cls_score_w"} <= tensors.keys():
        deltas, classes = len(tensors["bbox_pred_w"]), len(tensors["cls_score_w"])
        if deltas == 8 and classes > 2:  # background and any object
            raise InputError(f"bbox_pred_w has 8 rows for {classes} classes: class-agnostic box regression is not supported.")


def _unchanged(rows: np.ndarray) -> np.ndarray:
    return rows


def _background_last(rows: np.ndarray) -> np.ndarray:
    return np.roll(rows, -1, axis=0)


def _without_background(rows: np.ndarray, *, per_class: int) -> np.ndarray:
    return rows[per_class:] if len(rows) > per_class else rows  # one row: a mask for all classes


def _sizes_first(rows: np.ndarray, *, per_anchor: int) -> np.ndarray:
    """Rows of [ratios, sizes] anchors in the order [sizes, ratios]."""
    if len(rows) % (_ASPECT_RATIOS * per_anchor):
        raise InputError(f"The region proposal network's {len(rows)} rows are not those of anchors with {_ASPECT_RATIOS} aspect ratios at each size.")
    anchors = rows.reshape(_ASPECT_RATIOS, -1, per_anchor, *rows.shape[1:])
    return anchors.swapaxes(0, 1).reshape(rows.shape)


# Layers, by their names in Caffe2, whose outputs Detectron2 has in another order. With FPN a level has anchors of one size: nothing moves.
_ROWS = {
    "cls_score": _background_last,
    "bbox_pred": partial(_without_background, per_class=4),
    "mask_fcn_logits": partial(_without_background, per_class=1),
    "rpn_cls_logits": partial(_sizes_first, per_anchor=1),
    "rpn_bbox_pred": partial(_sizes_first, per_anchor=4),
}
