"""torchvision's detectors and ImageNet backbones: their tensors' names, and the conventions that they were trained with.

maskrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn and keypointrcnn_resnet50_fpn, also their _v2; ResNet and ResNeXt for ImageNet.
"""

import re
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
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.resnet import DEPTHS
from mrcnn_jax.weights.param_map import (
    MATRIX,
    POINTWISE,
    TRANSPOSED_2X2,
    TRANSPOSED_4X4,
    Table,
    Tensors,
    backbone_of,
    flattened,
)

BODY = "backbone.body."
DETECTOR = {"backbone", "rpn", "roi_heads"}
CLASSIFIER = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
"""The modules that the networks consist of."""

OLD_NAMES = (
    (r"fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"fpn.\1_blocks.\2.0.\3"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (r"mask_head\.mask_fcn(\d)\.(weight|bias)", lambda match: f"mask_head.{int(match[1]) - 1}.0.{match[2]}"),
)
"""Of files without version metadata, such as the first published ones."""


def modern(tensors: Tensors) -> Tensors:
    """The tensors under today's names, without counters and ImageNet's classifier; folded batch norm, a bias alone, becomes four vectors.

    A prefix "module.", which training on several devices leaves, is dropped.
    """
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        for old, new in OLD_NAMES:
            name = re.sub(f"{old}$", new, name)
        if not name.endswith("num_batches_tracked") and not name.startswith("fc."):
            renamed[name] = tensor
    if "conv1.bias" not in renamed:
        return renamed
    unfolded = {name: tensor for name, tensor in renamed.items() if not name.endswith(".bias")}
    for name in renamed.keys() - unfolded.keys():
        norm = re.sub(r"downsample\.0$", "downsample.1", re.sub(r"conv(\d)$", r"bn\1", name.removesuffix(".bias")))
        bias = renamed[name]
        unfolded |= {f"{norm}.weight": np.ones_like(bias), f"{norm}.bias": bias}
        unfolded |= {f"{norm}.running_mean": np.zeros_like(bias), f"{norm}.running_var": np.ones_like(bias)}
    return unfolded


def describe(tensors: Tensors, origin: str, folded: bool, counted: bool = False) -> Experiment:
    """The experiment that these tensors (``modern``) are of. InputError where they are of no known model.

    Args:
        origin: what to call the file.
        folded: batch norm is a bias alone.
        counted: batches were counted, so that batch norm was learned. A file does not say everything: detectors of the first generation with frozen
            batch norm are taken to have it without epsilon, as the published COCO ones do.
    """
    detector = f"{BODY}conv1.weight" in tensors
    prefix = BODY if detector else ""
    modules = {name.partition(".")[0] for name in tensors}
    if f"{prefix}conv1.weight" not in tensors or not modules <= (DETECTOR if detector else CLASSIFIER):
        raise InputError(
            f"{origin} is of no known model of torchvision: known are Faster, Mask and Keypoint R-CNN on a feature pyramid over ResNet or ResNeXt, "
            f"and those networks for ImageNet; its tensors are {', '.join(list(tensors)[:3])}, ..."
        )
    backbone = backbone_of(tensors, f"{prefix}conv1.weight", lambda stage, number: f"{prefix}layer{stage - 1}.{number}", origin)
    backbone = replace(backbone, stride_in_1x1=False, norm_epsilon=0.0 if folded else 1e-5)
    data = DataConfig(dataset="data/coco", padding_divisor=32)
    if not detector:
        return Experiment(name=backbone.name, model=ModelConfig(tasks=(), backbone=backbone, conventions=TORCHVISION), data=data)

    second = "backbone.fpn.inner_blocks.0.1.weight" in tensors  # the second generation has batch norm in all its parts, and learns it
    norm = "batch" if second else "none"
    if second or counted:
        backbone = replace(backbone, norm="batch", pyramid_norm=norm, freeze_stages=0)
    else:
        backbone = replace(backbone, norm="frozen", norm_epsilon=0.0)

    def count(pattern):
        return sum(bool(re.fullmatch(pattern, name)) for name in tensors)

    masks, keypoints = ("roi_heads.mask_predictor.conv5_mask.weight" in tensors, "roi_heads.keypoint_predictor.kps_score_lowres.weight" in tensors)
    scores, deconvolution = "roi_heads.box_predictor.cls_score.weight", "roi_heads.keypoint_predictor.kps_score_lowres.weight"
    classes = tensors[scores].shape[0] - 1 if scores in tensors else 0
    model = ModelConfig(
        num_classes=classes,
        tasks=("boxes", *(["masks"] if masks else []), *(["keypoints"] if keypoints else [])),
        backbone=backbone,
        rpn=RPNConfig(
            convolutions=max(1, count(r"rpn\.head\.conv\.\d+\.0\.weight")), min_size=1e-3,
        ),
        box=BoxHeadConfig(
            norm=norm, convolutions=count(r"roi_heads\.box_head\.\d+\.0\.weight"), fully_connected=1 if second else 2,
            smooth_l1_beta=1 / 9, min_size=1e-2,
        ),
        mask=MaskHeadConfig(
            norm=norm, layers=count(r"roi_heads\.mask_head\.\d+\.0\.weight") if masks else 4,
        ),
        keypoint=KeypointHeadConfig(
            num_keypoints=tensors[deconvolution].shape[1] if keypoints else 17,
            classes=tuple(range(classes or 1)), layers=count(r"roi_heads\.keypoint_head\.\d+\.weight") if keypoints else 8,
        ),
        conventions=TORCHVISION,
    )  # fmt: skip
    kind = "keypointrcnn" if keypoints else "maskrcnn" if masks else "fasterrcnn"
    return Experiment(name=f"{kind}_{backbone.name}_fpn{'_v2' if second else ''}", model=model, data=data)


def table(model: ModelConfig) -> Table:
    """The tensors of a model: of a backbone alone where it has no tasks."""
    names = Table()
    if not model.tasks:
        _backbone(names, model.backbone, "")
        return names
    backbone = model.backbone
    _backbone(names, backbone, BODY)
    for level in range(4):
        for theirs, ours in (("inner", "lateral"), ("layer", "output")):
            names.layer(f"backbone.fpn.{theirs}_blocks.{level}.0", f"fpn/{ours}{level + 2}", bias=backbone.pyramid_norm == "none")
            names.norm(f"backbone.fpn.{theirs}_blocks.{level}.1", f"fpn/{ours}{level + 2}_norm", backbone.pyramid_norm)
    for index in range(model.rpn.convolutions):
        names.layer(f"rpn.head.conv.{index}.0", f"rpn/conv{index + 1}")
    names.layer("rpn.head.cls_logits", "rpn/objectness")
    names.layer("rpn.head.bbox_pred", "rpn/deltas")

    box = model.box
    _convolutions(names, "roi_heads.box_head", "box", box.convolutions, box.norm)
    linear = [f"box_head.{box.convolutions + 1}"] if box.convolutions else ["box_head.fc6", "box_head.fc7"]
    for number, layer in enumerate(linear, start=1):
        names.layer(f"roi_heads.{layer}", f"box/fc{number}", flattened(box.pool.size) if number == 1 else MATRIX)
    names.layer("roi_heads.box_predictor.cls_score", "box/classes", MATRIX, background_first=True)
    names.layer("roi_heads.box_predictor.bbox_pred", "box/deltas", MATRIX, unused_rows=4)
    if "masks" in model.tasks:
        _convolutions(names, "roi_heads.mask_head", "mask", model.mask.layers, model.mask.norm)
        names.raw("roi_heads.mask_predictor.conv5_mask.weight", "mask/upsample/kernel", TRANSPOSED_2X2)
        names.raw("roi_heads.mask_predictor.conv5_mask.bias", "mask/upsample_bias")
        names.layer("roi_heads.mask_predictor.mask_fcn_logits", "mask/logits", POINTWISE, unused_rows=1)
    if "keypoints" in model.tasks:
        for index in range(model.keypoint.layers):
            names.layer(f"roi_heads.keypoint_head.{2 * index}", f"keypoint/conv{index + 1}")
        names.raw("roi_heads.keypoint_predictor.kps_score_lowres.weight", "keypoint/logits_kernel", TRANSPOSED_4X4)
        names.raw("roi_heads.keypoint_predictor.kps_score_lowres.bias", "keypoint/logits_bias")
    return names


def _convolutions(names, theirs, ours, count, norm):
    for index in range(count):
        names.layer(f"{theirs}.{index}.0", f"{ours}/conv{index + 1}", bias=norm == "none")
        names.norm(f"{theirs}.{index}.1", f"{ours}/conv{index + 1}_norm", norm)


def _backbone(names: Table, config: BackboneConfig, prefix: str) -> None:
    def convolution(theirs, norm, ours):
        names.layer(theirs, f"backbone/{ours}", bias=False)
        names.norm(norm, f"backbone/{ours}_norm", config.norm)

    convolution(f"{prefix}conv1", f"{prefix}bn1", "stem")
    bottleneck = config.name not in ("resnet18", "resnet34")
    for stage, depth in enumerate(DEPTHS[config.name], start=2):
        for number in range(depth):
            theirs, ours = f"{prefix}layer{stage - 1}.{number}", f"res{stage}_{number}"
            for index in range(1, 4 if bottleneck else 3):
                convolution(f"{theirs}.conv{index}", f"{theirs}.bn{index}", f"{ours}/conv{index}")
            if number == 0 and (stage > 2 or bottleneck):
                convolution(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
