"""Detectron2's detectors and backbones: names of their tensors, which converted files of the original
Detectron have too.

Covers Faster, Mask and Keypoint R-CNN with C4, DC5 and FPN.
"""

import re

from mrcnn_jax.config import BackboneConfig, ModelConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.models.resnet import DEPTHS
from mrcnn_jax.weights.param_map import (
    CONV_1X1,
    CONV_TRANSPOSE_2X2,
    CONV_TRANSPOSE_4X4,
    DENSE,
    ParamMap,
    Tensors,
    flattened_roi,
)

_BUFFERS = (
    r"(.*\.)?(num_batches_tracked|pixel_mean|pixel_std)|(.*\.)?anchor_generator\.cell_anchors\.\d+"
    r"|(stem\.fc|linear)\.(weight|bias)"
)
"""Tensors of files that are no weights of a detector: buffers, and ImageNet's classifier."""


def select_weights(tensors: Tensors) -> Tensors:
    """Returns the weights without buffers and ImageNet's classifier."""
    return {name: tensor for name, tensor in tensors.items() if not re.fullmatch(_BUFFERS, name)}


def make_param_map(model: ModelConfig) -> ParamMap:
    """Returns the map of a detector's tensors, or of a backbone's if the model has no tasks."""
    specs, backbone = ParamMap(), model.backbone
    fpn, c4 = backbone.features == "fpn", backbone.features == "c4"
    prefix = "" if not model.tasks else "backbone.bottom_up." if fpn else "backbone."
    _add_convolution(specs, f"{prefix}stem.conv1", "backbone/stem", backbone.norm)
    for stage in range(2, 5 if c4 and model.tasks else 6):
        _add_stage(specs, backbone, stage, prefix, "backbone")
    if not model.tasks:
        return specs
    if fpn:
        for level in range(2, 6):
            for part in ("lateral", "output"):
                source, ours = f"backbone.fpn_{part}{level}", f"fpn/{part}{level}"
                _add_convolution(specs, source, ours, backbone.pyramid_norm)
    if c4:
        _add_stage(specs, backbone, 5, "roi_heads.", "res5")
    for index in range(model.rpn.convolutions):
        source = "conv" if model.rpn.convolutions == 1 else f"conv.conv{index}"
        specs.add_layer(f"proposal_generator.rpn_head.{source}", f"rpn/conv{index + 1}")
    specs.add_layer("proposal_generator.rpn_head.objectness_logits", "rpn/objectness")
    specs.add_layer("proposal_generator.rpn_head.anchor_deltas", "rpn/deltas")

    box = model.box
    for index in range(1, box.convolutions + 1):
        _add_convolution(specs, f"roi_heads.box_head.conv{index}", f"box/conv{index}", box.norm)
    for index in range(1, box.fully_connected + 1):
        layout = flattened_roi(box.pool.size) if index == 1 else DENSE
        specs.add_layer(f"roi_heads.box_head.fc{index}", f"box/fc{index}", layout)
    specs.add_layer("roi_heads.box_predictor.cls_score", "box/classes", DENSE)
    specs.add_layer("roi_heads.box_predictor.bbox_pred", "box/deltas", DENSE)
    if "masks" in model.tasks:
        for index in range(1, model.mask.layers + 1):
            source = f"roi_heads.mask_head.mask_fcn{index}"
            _add_convolution(specs, source, f"mask/conv{index}", model.mask.norm)
        specs.add_tensor("roi_heads.mask_head.deconv.weight", "mask/upsample/kernel", CONV_TRANSPOSE_2X2)
        specs.add_tensor("roi_heads.mask_head.deconv.bias", "mask/upsample_bias")
        specs.add_layer("roi_heads.mask_head.predictor", "mask/logits", CONV_1X1)
    if "keypoints" in model.tasks:
        head = "roi_heads.keypoint_head"
        for index in range(1, model.keypoint.layers + 1):
            specs.add_layer(f"{head}.conv_fcn{index}", f"keypoint/conv{index}")
        specs.add_tensor(f"{head}.score_lowres.weight", "keypoint/logits_kernel", CONV_TRANSPOSE_4X4)
        specs.add_tensor(f"{head}.score_lowres.bias", "keypoint/logits_bias")
    return specs


def _add_stage(specs: ParamMap, config: BackboneConfig, stage: int, prefix: str, module: str) -> None:
    basic = config.name in BASIC
    for number in range(DEPTHS[config.name][stage - 2]):
        layers = [f"conv{index}" for index in range(1, 3 if basic else 4)]
        if number == 0 and (stage > 2 or not basic):
            layers.append("shortcut")
        for layer in layers:
            source, ours = f"{prefix}res{stage}.{number}.{layer}", f"{module}/res{stage}_{number}/{layer}"
            _add_convolution(specs, source, ours, config.norm)


def _add_convolution(specs: ParamMap, source: str, ours: str, norm: str) -> None:
    specs.add_layer(source, ours, bias=norm == "none")
    specs.add_norm(f"{source}.norm", f"{ours}_norm", norm)
