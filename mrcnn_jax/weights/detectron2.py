"""Detectron2's detectors, by the names of their tensors; also those of the original Detectron, once renamed (detectron1).

Mask, Faster and Keypoint R-CNN with C4, DC5 and FPN; backbones alone.
"""

import re

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.models.resnet import DEPTHS
from mrcnn_jax.weights.param_map import (
    MATRIX,
    POINTWISE,
    TRANSPOSED_2X2,
    TRANSPOSED_4X4,
    Table,
    Tensors,
    flattened,
)

IGNORED = r"(.*\.)?(num_batches_tracked|pixel_mean|pixel_std)|(.*\.)?anchor_generator\.cell_anchors\.\d+|(stem\.fc|linear)\.(weight|bias)"
"""What files may hold besides the weights of a detector."""


def known(tensors: Tensors) -> Tensors:
    """The tensors without what is no weight, and without the prefix "module." that training on several devices leaves."""
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not re.fullmatch(IGNORED, name)}


def table(model: ModelConfig) -> Table:
    """The tensors of a model: of a backbone alone where it has no tasks."""
    names, backbone = Table(), model.backbone
    fpn, c4 = backbone.features == "fpn", backbone.features == "c4"
    prefix = "" if not model.tasks else "backbone.bottom_up." if fpn else "backbone."
    stages = range(2, 5 if c4 and model.tasks else 6)
    _convolution(names, f"{prefix}stem.conv1", "backbone/stem", backbone.norm)
    for stage in stages:
        _stage(names, backbone, stage, prefix, "backbone")
    if not model.tasks:
        return names
    if fpn:
        for level in range(2, 6):
            for part in ("lateral", "output"):
                _convolution(names, f"backbone.fpn_{part}{level}", f"fpn/{part}{level}", backbone.pyramid_norm)
    if c4:
        _stage(names, backbone, 5, "roi_heads.", "res5")
    for index in range(model.rpn.convolutions):
        theirs = "conv" if model.rpn.convolutions == 1 else f"conv.conv{index}"
        names.layer(f"proposal_generator.rpn_head.{theirs}", f"rpn/conv{index + 1}")
    names.layer("proposal_generator.rpn_head.objectness_logits", "rpn/objectness")
    names.layer("proposal_generator.rpn_head.anchor_deltas", "rpn/deltas")

    box, side = model.box, model.box.pool.size
    for index in range(1, box.convolutions + 1):
        _convolution(names, f"roi_heads.box_head.conv{index}", f"box/conv{index}", box.norm)
    for index in range(1, box.fully_connected + 1):
        names.layer(f"roi_heads.box_head.fc{index}", f"box/fc{index}", flattened(side) if index == 1 else MATRIX)
    names.layer("roi_heads.box_predictor.cls_score", "box/classes", MATRIX)
    names.layer("roi_heads.box_predictor.bbox_pred", "box/deltas", MATRIX)
    if "masks" in model.tasks:
        for index in range(1, model.mask.layers + 1):
            _convolution(names, f"roi_heads.mask_head.mask_fcn{index}", f"mask/conv{index}", model.mask.norm)
        names.raw("roi_heads.mask_head.deconv.weight", "mask/upsample/kernel", TRANSPOSED_2X2)
        names.raw("roi_heads.mask_head.deconv.bias", "mask/upsample_bias")
        names.layer("roi_heads.mask_head.predictor", "mask/logits", POINTWISE)
    if "keypoints" in model.tasks:
        for index in range(1, model.keypoint.layers + 1):
            names.layer(f"roi_heads.keypoint_head.conv_fcn{index}", f"keypoint/conv{index}")
        names.raw("roi_heads.keypoint_head.score_lowres.weight", "keypoint/logits_kernel", TRANSPOSED_4X4)
        names.raw("roi_heads.keypoint_head.score_lowres.bias", "keypoint/logits_bias")
    return names


def _stage(names, config, stage, prefix, module):
    basic = config.name in BASIC
    for number in range(DEPTHS[config.name][stage - 2]):
        theirs, ours = f"{prefix}res{stage}.{number}", f"{module}/res{stage}_{number}"
        layers = [f"conv{index}" for index in range(1, 3 if basic else 4)]
        for layer in (*layers, "shortcut") if number == 0 and (stage > 2 or not basic) else layers:
            _convolution(names, f"{theirs}.{layer}", f"{ours}/{layer}", config.norm)


def _convolution(names, theirs, ours, norm):
    names.layer(theirs, ours, bias=norm == "none")
    names.norm(f"{theirs}.norm", f"{ours}_norm", norm)
