"""Small models of every system the paper compares, and fewer that cover the same settings between them."""

from dataclasses import replace

import tiny

from mrcnn_jax.config import (
    BranchPoolConfig,
    Conventions,
    FCISConfig,
    KeypointHeadConfig,
    MNCConfig,
    ModelConfig,
    PoolConfig,
)

ALL_TASKS = ("boxes", "masks", "keypoints")
KEYPOINT_HEAD = KeypointHeadConfig(
    pool=BranchPoolConfig(size=7), num_keypoints=7, classes=(6,), layers=1, channels=16
)
BASE = replace(tiny.model_config(num_classes=7), keypoint=KEYPOINT_HEAD)


def _backbone(**changes) -> ModelConfig:
    return replace(BASE, backbone=replace(BASE.backbone, **changes))


def _single_map(features: str, level: int, **backbone) -> ModelConfig:
    return replace(
        BASE,
        backbone=replace(BASE.backbone, features=features, **backbone),
        rpn=replace(BASE.rpn, anchor_sizes=(16, 32)),
        roi=replace(BASE.roi, levels=(level, level)),
        box=replace(BASE.box, fully_connected=0 if features == "c4" else 1),
    )


def _c4(size: int, stride: int, **backbone) -> ModelConfig:
    model, pool = _single_map("c4", 4, **backbone), BranchPoolConfig(size=size)
    branches = {"box": model.box, "mask": replace(model.mask, layers=0), "keypoint": model.keypoint}
    branches = {name: replace(branch, pool=pool) for name, branch in branches.items()}
    return replace(model, roi=replace(model.roi, res5_stride=stride), **branches)


def _pool(model: ModelConfig = BASE, **changes) -> ModelConfig:
    return replace(model, pool=PoolConfig(**changes))


def _mask(model: ModelConfig = BASE, **changes) -> ModelConfig:
    return replace(model, mask=replace(model.mask, **changes))


def _tasks(*tasks: str, model: ModelConfig = BASE) -> ModelConfig:
    return replace(model, tasks=tasks)


def _head_convolutions(model: ModelConfig) -> ModelConfig:
    box = replace(model.box, convolutions=2, convolution_channels=16, fully_connected=1, norm="group")
    return replace(model, rpn=replace(model.rpn, convolutions=2), box=box)


def _frozen_rpn(model: ModelConfig = BASE) -> ModelConfig:
    """Proposals of a separate RPN, from which RoIs of every level are pooled."""
    rpn = replace(model.rpn, proposals_from="runs/rpn")
    return replace(model, rpn=rpn, roi=replace(model.roi, canonical_size=20.0))


def _roi_pool_and_warp(model: ModelConfig) -> ModelConfig:
    model = _mask(model, pool=BranchPoolConfig(size=7, operation="roi_warp_max"))
    return replace(model, box=replace(model.box, pool=BranchPoolConfig(operation="roi_pool")))


def _not_aligned(model: ModelConfig) -> ModelConfig:
    return replace(_pool(model, sampling_ratio=0), conventions=Conventions(roi_half_pixel=False))


def _fcis() -> ModelConfig:
    """FCIS of 2 x 2 groups and 6 x 6 bins, with hard examples and mask voting."""
    model = _mask(_tasks("boxes", "masks", model=_single_map("dc5", 5)), threshold=0.4)
    return replace(model, system="fcis", fcis=FCISConfig(channels=32, groups=2, size=6))


def _mnc(model: ModelConfig, **changes) -> ModelConfig:
    """Multi-task network cascades of five stages, with mask voting."""
    mask = {"head": "mlp", "layers": 1, "class_agnostic": True, "threshold": 0.4}
    model = _pool(_tasks("boxes", "masks", model=_mask(model, **mask)), operation="roi_warp_max")
    return replace(model, system="mnc", mnc=MNCConfig(**changes))


RESNEXT = _mask(
    _backbone(name="resnet50", groups=2, stride_in_1x1=False, norm="batch", pyramid_norm="batch"),
    norm="batch",
)
C4_BOTTLENECKS = _tasks(*ALL_TASKS, model=_c4(size=3, stride=1, name="resnet50", stride_in_1x1=False))

VARIANTS: dict[str, ModelConfig] = {
    "fpn": BASE,
    # backbones and RoI operations
    "c4, softmax masks": _mask(_c4(size=6, stride=2), loss="softmax"),
    "c4, bottlenecks, stride 1, all branches": C4_BOTTLENECKS,
    "c5, RoIPool": _pool(_single_map("c5", 5), operation="roi_pool"),
    "dc5, RoIWarp average": _pool(_single_map("dc5", 5), operation="roi_warp"),
    "ResNeXt, batch norm over devices": RESNEXT,
    "non-local, RoIAlign max": _pool(_backbone(non_local=True), operation="roi_align_max"),
    "frozen stages, one level of the pyramid": replace(
        _backbone(norm="frozen", freeze_stages=2), roi=replace(BASE.roi, levels=(3, 3))
    ),
    "RoIAlign adaptive, not aligned": _not_aligned(BASE),
    "boxes by RoIPool, masks by RoIWarp max": _roi_pool_and_warp(BASE),
    # mask branch
    "mlp of two": _mask(head="mlp", layers=2),
    "mlp of three, class-agnostic": _mask(head="mlp", layers=3, class_agnostic=True),
    "class-agnostic, no layers": _mask(class_agnostic=True, layers=0),
    # other systems
    "FCIS": _fcis(),
    "MNC": _mnc(_c4(size=6, stride=2)),
    # tasks
    "proposals": _tasks(),
    "boxes, convolutions in the heads": _head_convolutions(_tasks("boxes")),
    "keypoints": _tasks("boxes", "keypoints"),
    "masks and keypoints": _tasks(*ALL_TASKS),
    "separate RPN": _frozen_rpn(),
}
"""Every system; trained one by one in the slow tier."""

COVERING: dict[str, ModelConfig] = {
    "c4, frozen stages, RoIAlign max, softmax masks": _pool(
        _mask(_c4(size=6, stride=2, norm="frozen", freeze_stages=2), loss="softmax"),
        operation="roi_align_max",
    ),
    "c4, bottlenecks, stride 1, mlp of two, all branches": _mask(C4_BOTTLENECKS, head="mlp", layers=2),
    "c5, RoIPool, keypoints": _tasks(
        "boxes", "keypoints", model=_pool(_single_map("c5", 5), operation="roi_pool")
    ),
    "dc5, RoIWarp, class-agnostic mlp of three": _mask(
        _pool(_single_map("dc5", 5), operation="roi_warp"), head="mlp", layers=3, class_agnostic=True
    ),
    "ResNeXt, one level, RoIPool and RoIWarp": replace(
        _roi_pool_and_warp(RESNEXT), roi=replace(BASE.roi, levels=(3, 3))
    ),
    "FCIS": _fcis(),
    "non-local, proposals": _tasks(model=_backbone(non_local=True)),
    "MNC": VARIANTS["MNC"],
    "separate RPN, boxes, adaptive RoIAlign": _not_aligned(_frozen_rpn(_head_convolutions(_tasks("boxes")))),
}
"""Combinations in which every setting of VARIANTS occurs."""
