"""Every system the paper compares, at a size that compiles in seconds: each is a small change of the tiny detector."""

from dataclasses import replace

import tiny

from mrcnn_jax.config import BranchPoolConfig, Conventions, KeypointHeadConfig, ModelConfig, PoolConfig

BASE = replace(tiny.model_config(num_classes=7), keypoint=KeypointHeadConfig(pool=BranchPoolConfig(size=7), num_keypoints=7, classes=(6,), layers=1, channels=16))


def _backbone(**changes) -> ModelConfig:
    return replace(BASE, backbone=replace(BASE.backbone, **changes))


def _single(features: str, level: int, **backbone) -> ModelConfig:
    return replace(
        BASE,
        backbone=replace(BASE.backbone, features=features, **backbone),
        rpn=replace(BASE.rpn, anchor_sizes=(16, 32)),
        roi=replace(BASE.roi, levels=(level, level)),
        box=replace(BASE.box, fully_connected=0 if features == "c4" else 1),
    )


def _c4(size: int, stride: int, **backbone) -> ModelConfig:
    model, bins = _single("c4", 4, **backbone), BranchPoolConfig(size=size)
    branches = {"box": model.box, "mask": replace(model.mask, layers=0), "keypoint": model.keypoint}
    return replace(model, roi=replace(model.roi, res5_stride=stride), **{name: replace(branch, pool=bins) for name, branch in branches.items()})


def _pool(model: ModelConfig = BASE, **changes) -> ModelConfig:
    return replace(model, pool=PoolConfig(**changes))


def _mask(model: ModelConfig = BASE, **changes) -> ModelConfig:
    return replace(model, mask=replace(model.mask, **changes))


def _tasks(*tasks: str, model: ModelConfig = BASE) -> ModelConfig:
    return replace(model, tasks=tasks)


VARIANTS: dict[str, ModelConfig] = {
    "fpn": BASE,
    # backbones, with the RoI operations among them
    "c4, softmax masks": _mask(_c4(size=6, stride=2), loss="softmax"),
    "c4, bottlenecks, stride 1, all branches": _tasks("boxes", "masks", "keypoints", model=_c4(size=3, stride=1, name="resnet50", stride_in_1x1=False)),
    "c5, RoIPool": _pool(_single("c5", 5), operation="roi_pool"),
    "dc5, RoIWarp average": _pool(_single("dc5", 5), operation="roi_warp"),
    "resnext, sync batch norm": _mask(_backbone(name="resnet50", groups=2, group_width=64, stride_in_1x1=False, norm="batch", pyramid_norm="batch"), norm="batch"),
    "non-local, RoIAlign max": _pool(_backbone(non_local=True), operation="roi_align_max"),
    "frozen stages, one level of the pyramid": replace(_backbone(norm="frozen", freeze_stages=2), roi=replace(BASE.roi, levels=(3, 3))),
    "RoIAlign adaptive, not aligned": replace(_pool(sampling_ratio=0), conventions=Conventions(roi_half_pixel=False)),
    "boxes by RoIPool, masks by RoIWarp max": replace(_mask(pool=BranchPoolConfig(size=7, operation="roi_warp_max")),
                                                      box=replace(BASE.box, pool=BranchPoolConfig(operation="roi_pool"))),
    # mask branch
    "mlp of two": _mask(head="mlp", layers=2),
    "mlp of three, class-agnostic": _mask(head="mlp", layers=3, class_agnostic=True),
    "class-agnostic, no layers": _mask(class_agnostic=True, layers=0),
    # tasks
    "proposals": _tasks(),
    "boxes, convolutions in the heads": replace(_tasks("boxes"), rpn=replace(BASE.rpn, convolutions=2),
                                                box=replace(BASE.box, convolutions=2, convolution_channels=16, fully_connected=1, norm="group")),
    "keypoints": _tasks("boxes", "keypoints"),
    "masks and keypoints": _tasks("boxes", "masks", "keypoints"),
    "separate RPN": replace(BASE, rpn=replace(BASE.rpn, proposals_from="runs/rpn"), roi=replace(BASE.roi, canonical_size=20.0)),  # RoIs on every level
}  # fmt: skip
