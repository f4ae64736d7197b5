"""torchvision's detectors and ImageNet classifiers: names of their tensors, and the experiment that a state
dict belongs to.

Covers fasterrcnn, maskrcnn and keypointrcnn_resnet50_fpn, their _v2, and the ResNets and ResNeXts.
"""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mrcnn_jax.config import (
    TORCHVISION,
    BackboneConfig,
    BoxHeadConfig,
    DataConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RPNConfig,
)
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.resnet import DEPTHS
from mrcnn_jax.weights.backbones import infer_backbone
from mrcnn_jax.weights.param_map import (
    CONV_1X1,
    CONV_TRANSPOSE_2X2,
    CONV_TRANSPOSE_4X4,
    DENSE,
    ParamMap,
    Tensors,
    flattened_roi,
)

BACKBONE_PREFIX = "backbone.body."
"""Prefix of the ResNet's tensors in a detector."""

_DETECTOR_MODULES = {"backbone", "rpn", "roi_heads"}
_CLASSIFIER_MODULES = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
_RENAMED: tuple[tuple[str, str | Callable], ...] = (
    (r"fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"fpn.\1_blocks.\2.0.\3"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"mask_head\.mask_fcn(\d)\.(weight|bias)", lambda match: f"mask_head.{int(match[1]) - 1}.0.{match[2]}"),
)
"""Names in the first published files, which torchvision itself still renames."""


def normalize_state_dict(tensors: Tensors) -> Tensors:
    """Returns the weights of a state dict under torchvision's current names.

    Drops batch counters and the ImageNet classifier. Batch norm that is folded into the bias of a convolution
    becomes the four vectors of a batch norm layer.
    """
    weights = {}
    for name, tensor in tensors.items():
        for old, new in _RENAMED:
            name = re.sub(f"{old}$", new, name)
        if not name.endswith("num_batches_tracked") and not name.startswith("fc."):
            weights[name] = tensor
    return _unfold_batch_norm(weights) if "conv1.bias" in weights else weights


def _unfold_batch_norm(weights: Tensors) -> Tensors:
    unfolded = {name: tensor for name, tensor in weights.items() if not name.endswith(".bias")}
    for name in weights.keys() - unfolded.keys():
        norm, bias = re.sub(r"conv(\d)$", r"bn\1", name.removesuffix(".bias")), weights[name]
        norm = re.sub(r"downsample\.0$", "downsample.1", norm)
        unfolded |= {f"{norm}.weight": np.ones_like(bias), f"{norm}.bias": bias}
        unfolded |= {f"{norm}.running_mean": np.zeros_like(bias), f"{norm}.running_var": np.ones_like(bias)}
    return unfolded


def infer_experiment(
    tensors: Tensors, origin: str, *, folded_norm: bool = False, trained_norm: bool = False
) -> Experiment:
    """Infers the experiment that a state dict belongs to.

    A state dict does not hold everything. First-generation detectors (without batch norm in the heads) whose
    backbone has frozen batch norm are assumed to have no epsilon in it, like the published COCO models.

    Args:
        tensors: as ``normalize_state_dict`` returns them.
        origin: name of the file, for messages.
        folded_norm: the file had batch norm folded into biases.
        trained_norm: the file had counters of batches, so that the backbone's batch norm was trained.

    Raises:
        InputError: the tensors are not those of a supported model.
    """
    is_detector = f"{BACKBONE_PREFIX}conv1.weight" in tensors
    prefix = BACKBONE_PREFIX if is_detector else ""
    modules = {name.partition(".")[0] for name in tensors}
    supported = _DETECTOR_MODULES if is_detector else _CLASSIFIER_MODULES
    if f"{prefix}conv1.weight" not in tensors or not modules <= supported:
        raise InputError(
            f"{origin} is not a supported model of torchvision: those are Faster, Mask and Keypoint R-CNN "
            "with a feature pyramid on ResNet or ResNeXt, and these backbones trained on ImageNet; its first "
            f"tensors are {', '.join(list(tensors)[:3])}"
        )
    backbone = infer_backbone(
        tensors, f"{prefix}conv1.weight", lambda stage, number: f"{prefix}layer{stage - 1}.{number}", origin
    )
    backbone = replace(backbone, stride_in_1x1=False, norm_epsilon=0.0 if folded_norm else 1e-5)
    data = DataConfig(dataset="data/coco", padding_divisor=32)
    if not is_detector:
        model = ModelConfig(tasks=(), backbone=backbone, conventions=TORCHVISION)
        return Experiment(name=backbone.name, model=model, data=data)

    # the second generation has batch norm in the pyramid and the heads, and trains all of it
    second_generation = "backbone.fpn.inner_blocks.0.1.weight" in tensors
    if second_generation or trained_norm:
        pyramid_norm = "batch" if second_generation else "none"
        backbone = replace(backbone, norm="batch", pyramid_norm=pyramid_norm, freeze_stages=0)
    else:
        backbone = replace(backbone, norm="frozen", norm_epsilon=0.0)
    model = _infer_detector(tensors, backbone, second_generation)
    kinds = {"keypoints": "keypointrcnn", "masks": "maskrcnn", "boxes": "fasterrcnn"}
    kind = next(kinds[task] for task in kinds if task in model.tasks)
    name = f"{kind}_{backbone.name}_fpn{'_v2' if second_generation else ''}"
    return Experiment(name=name, model=model, data=data)


def _infer_detector(tensors: Tensors, backbone: BackboneConfig, second_generation: bool) -> ModelConfig:
    def count(pattern):
        return sum(bool(re.fullmatch(pattern, name)) for name in tensors)

    norm = "batch" if second_generation else "none"
    scores = tensors.get("roi_heads.box_predictor.cls_score.weight")
    num_classes = 0 if scores is None else scores.shape[0] - 1
    has_masks = "roi_heads.mask_predictor.conv5_mask.weight" in tensors
    keypoint_logits = tensors.get("roi_heads.keypoint_predictor.kps_score_lowres.weight")
    has_keypoints = keypoint_logits is not None
    return ModelConfig(
        num_classes=num_classes,
        tasks=("boxes", *(["masks"] if has_masks else []), *(["keypoints"] if has_keypoints else [])),
        backbone=backbone,
        rpn=RPNConfig(convolutions=max(1, count(r"rpn\.head\.conv\.\d+\.0\.weight")), min_size=1e-3),
        box=BoxHeadConfig(
            norm=norm,
            convolutions=count(r"roi_heads\.box_head\.\d+\.0\.weight"),
            fully_connected=1 if second_generation else 2,
            smooth_l1_beta=1 / 9,
            min_size=1e-2,
        ),
        mask=MaskHeadConfig(
            norm=norm,
            layers=count(r"roi_heads\.mask_head\.\d+\.0\.weight") if has_masks else 4,
        ),
        keypoint=KeypointHeadConfig(
            num_keypoints=keypoint_logits.shape[1] if has_keypoints else 17,
            classes=tuple(range(num_classes or 1)),
            layers=count(r"roi_heads\.keypoint_head\.\d+\.weight") if has_keypoints else 8,
        ),
        conventions=TORCHVISION,
    )


def make_param_map(model: ModelConfig) -> ParamMap:
    """Returns the map of a detector's tensors, or of a backbone's if the model has no tasks."""
    specs, backbone = ParamMap(), model.backbone
    if not model.tasks:
        _add_backbone(specs, backbone, "")
        return specs
    _add_backbone(specs, backbone, BACKBONE_PREFIX)
    for level in range(4):
        for part, ours in (("inner", f"fpn/lateral{level + 2}"), ("layer", f"fpn/output{level + 2}")):
            source = f"backbone.fpn.{part}_blocks.{level}"
            specs.add_layer(f"{source}.0", ours, bias=backbone.pyramid_norm == "none")
            specs.add_norm(f"{source}.1", f"{ours}_norm", backbone.pyramid_norm)
    for index in range(model.rpn.convolutions):
        specs.add_layer(f"rpn.head.conv.{index}.0", f"rpn/conv{index + 1}")
    specs.add_layer("rpn.head.cls_logits", "rpn/objectness")
    specs.add_layer("rpn.head.bbox_pred", "rpn/deltas")

    box = model.box
    _add_head_convolutions(specs, "roi_heads.box_head", "box", box.convolutions, box.norm)
    linear = [f"box_head.{box.convolutions + 1}"] if box.convolutions else ["box_head.fc6", "box_head.fc7"]
    for number, layer in enumerate(linear, start=1):
        layout = flattened_roi(box.pool.size) if number == 1 else DENSE
        specs.add_layer(f"roi_heads.{layer}", f"box/fc{number}", layout)
    specs.add_layer("roi_heads.box_predictor.cls_score", "box/classes", DENSE, background_first=True)
    specs.add_layer("roi_heads.box_predictor.bbox_pred", "box/deltas", DENSE, unused_rows=4)
    if "masks" in model.tasks:
        _add_head_convolutions(specs, "roi_heads.mask_head", "mask", model.mask.layers, model.mask.norm)
        predictor = "roi_heads.mask_predictor"
        specs.add_tensor(f"{predictor}.conv5_mask.weight", "mask/upsample/kernel", CONV_TRANSPOSE_2X2)
        specs.add_tensor(f"{predictor}.conv5_mask.bias", "mask/upsample_bias")
        specs.add_layer(f"{predictor}.mask_fcn_logits", "mask/logits", CONV_1X1, unused_rows=1)
    if "keypoints" in model.tasks:
        for index in range(model.keypoint.layers):  # the odd modules are ReLUs
            specs.add_layer(f"roi_heads.keypoint_head.{2 * index}", f"keypoint/conv{index + 1}")
        logits = "roi_heads.keypoint_predictor.kps_score_lowres"
        specs.add_tensor(f"{logits}.weight", "keypoint/logits_kernel", CONV_TRANSPOSE_4X4)
        specs.add_tensor(f"{logits}.bias", "keypoint/logits_bias")
    return specs


def _add_head_convolutions(specs: ParamMap, source: str, ours: str, count: int, norm: str) -> None:
    for index in range(count):
        specs.add_layer(f"{source}.{index}.0", f"{ours}/conv{index + 1}", bias=norm == "none")
        specs.add_norm(f"{source}.{index}.1", f"{ours}/conv{index + 1}_norm", norm)


def _add_backbone(specs: ParamMap, config: BackboneConfig, prefix: str) -> None:
    def add(convolution, norm, ours):
        specs.add_layer(f"{prefix}{convolution}", f"backbone/{ours}", bias=False)
        specs.add_norm(f"{prefix}{norm}", f"backbone/{ours}_norm", config.norm)

    add("conv1", "bn1", "stem")
    basic = config.name in BASIC
    for stage, depth in enumerate(DEPTHS[config.name], start=2):
        for number in range(depth):
            source, ours = f"layer{stage - 1}.{number}", f"res{stage}_{number}"
            for index in range(1, 3 if basic else 4):
                add(f"{source}.conv{index}", f"{source}.bn{index}", f"{ours}/conv{index}")
            if number == 0 and (stage > 2 or not basic):
                add(f"{source}.downsample.0", f"{source}.downsample.1", f"{ours}/shortcut")
