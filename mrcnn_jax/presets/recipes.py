"""The recipes of Detectron2's model zoo and of torchvision's second generation, on COCO.

The models are those that weights of these names are imported as, so that runs and weights can be compared and
exchanged; a recipe adds data and schedule. experiments/recipes.json has where each is published.
"""

from dataclasses import replace
from functools import partial

from mrcnn_jax.config import (
    DETECTRON2,
    TORCHVISION,
    AugmentationConfig,
    BackboneConfig,
    BoxHeadConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.presets.coco import COCO, with_c4, with_c5
from mrcnn_jax.presets.registry import register

SIZE_JITTER = replace(COCO, short_edge=(640, 672, 704, 736, 768, 800))
LARGE_SCALE_JITTER = replace(
    COCO, short_edge=(1024,), long_edge=1024, augment=AugmentationConfig(scale_jitter=(0.1, 2.0))
)
"""Images of 0.1 to 2 times 1024 pixels, of which a square of 1024 is shown (Ghiasi et al., 2021)."""
BATCH_NORM = ModelConfig(
    backbone=BackboneConfig(norm="batch", pyramid_norm="batch", freeze_stages=0),
    rpn=RPNConfig(convolutions=2),
    box=BoxHeadConfig(convolutions=4, fully_connected=1, norm="batch"),
    mask=MaskHeadConfig(norm="batch"),
)
"""Batch norm over all devices throughout, trained from scratch; two convolutions in the RPN, four and a fully
connected layer in the box head."""
_X101 = BackboneConfig(name="resnet101", groups=32, group_width=8, stride_in_1x1=False)
_R101 = ModelConfig(backbone=BackboneConfig(name="resnet101"))
_MODELS = {
    "r50_c4": with_c4(ModelConfig()),
    "r50_dc5": with_c5(ModelConfig(), dilated=True),
    "r50_fpn": ModelConfig(),
    "r101_c4": with_c4(_R101),
    "r101_dc5": with_c5(_R101, dilated=True),
    "r101_fpn": _R101,
    "x101_32x8d_fpn": ModelConfig(backbone=_X101),
}


def as_in_detectron2(model: ModelConfig) -> ModelConfig:
    """Returns a model with the losses, proposals, pooling and images of Detectron2's model zoo."""
    fpn, resnext = model.backbone.features == "fpn", model.backbone.groups > 1
    proposals = 1000 if fpn else 2000
    return replace(
        model,
        rpn=replace(model.rpn, smooth_l1_beta=0.0, post_nms_train=proposals, post_nms_test=1000),
        roi=replace(model.roi, samples_per_image=512),
        pool=PoolConfig(sampling_ratio=0),
        box=replace(model.box, smooth_l1_beta=0.0),
        conventions=DETECTRON2,
        channel_order="bgr",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(57.375, 57.12, 58.395) if resnext else (1.0, 1.0, 1.0),
    )


def model_zoo(name: str, schedule: str) -> Experiment:
    """Returns a recipe of the model zoo: 90,000 steps of 16 images ("1x") or three times as many ("3x")."""
    steps, decays = {"1x": (90_000, (60_000, 80_000)), "3x": (270_000, (210_000, 250_000))}[schedule]
    train = TrainConfig(steps=steps, decay_steps=decays, warmup_steps=1_000, warmup_factor=0.001)
    return Experiment(model=as_in_detectron2(_MODELS[name]), data=SIZE_JITTER, train=train)


def new_baseline(name: str, epochs: int) -> Experiment:
    """Returns a recipe of the "new baselines", for a multiple of 100 epochs in steps of 64 images."""
    model = replace(BATCH_NORM, backbone=replace(BATCH_NORM.backbone, name=name))
    times = epochs // 100
    train = TrainConfig(
        steps=times * 184_375, decay_steps=(times * 163_889, times * 177_546), learning_rate=0.1,
        reference_batch=64, warmup_steps=times * 500, warmup_factor=0.067, weight_decay=4e-5,
    )  # fmt: skip
    return Experiment(model=as_in_detectron2(model), data=LARGE_SCALE_JITTER, train=train)


def second_generation() -> Experiment:
    """Returns torchvision's recipe: 400 epochs of its 117,266 images with objects, in steps of 64."""
    model = replace(
        BATCH_NORM,
        backbone=replace(BATCH_NORM.backbone, stride_in_1x1=False),
        rpn=replace(BATCH_NORM.rpn, min_size=1e-3),
        box=replace(BATCH_NORM.box, smooth_l1_beta=1 / 9, min_size=1e-2),
        conventions=TORCHVISION,
    )
    train = TrainConfig(
        steps=732_912, decay_steps=(644_963, 703_596), learning_rate=0.1, reference_batch=64,
        warmup_steps=1_000, warmup_factor=0.001, weight_decay=4e-5,
    )  # fmt: skip
    return Experiment(model=model, data=LARGE_SCALE_JITTER, train=train)


def _title(name: str) -> str:
    """Returns "X101 32x8d-FPN" for "x101_32x8d_fpn"."""
    network, _, features = name.rpartition("_")
    return f"{network.capitalize().replace('_', ' ')}-{features.upper()}"


for _name in _MODELS:
    for _schedule in ("1x", "3x") if _name.startswith("r50") else ("3x",):
        register(f"mask_rcnn_{_name}_{_schedule}", partial(model_zoo, _name, _schedule),
                 f"Detectron2's Mask R-CNN {_title(_name)}, {_schedule} schedule, on COCO.")  # fmt: skip
for _depth in (50, 101):
    for _epochs in (100, 200, 400):
        register(f"mask_rcnn_r{_depth}_fpn_{_epochs}ep", partial(new_baseline, f"resnet{_depth}", _epochs),
                 f"Detectron2's new baseline R{_depth}-FPN, {_epochs} epochs with large-scale jitter, from "
                 "scratch.")  # fmt: skip
register("mask_rcnn_r50_fpn_v2", second_generation,
         "torchvision's second Mask R-CNN, 400 epochs with large-scale jitter, from scratch.")  # fmt: skip
