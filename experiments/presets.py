"""Named experiments. Each docstring says what it is for and the command that runs it; the first line is its entry in the list."""

import inspect
from collections.abc import Callable
from dataclasses import replace

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    DataConfig,
    EvaluationConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.errors import InputError

EXPERIMENTS: dict[str, Callable[[], Experiment]] = {}


def named(build: Callable[[], Experiment]) -> Callable[[], Experiment]:
    """Enters an experiment under its function's name."""
    EXPERIMENTS[build.__name__] = build
    return build


def get(name: str) -> Experiment:
    """The experiment of that name; InputError lists the names there are."""
    if name not in EXPERIMENTS:
        raise InputError(f"there is no experiment {name!r}; choose from {', '.join(EXPERIMENTS)}")
    return replace(EXPERIMENTS[name](), name=name)


def describe(name: str) -> str:
    """The first line of an experiment's docstring."""
    return inspect.getdoc(EXPERIMENTS[name]).splitlines()[0]


# a narrow network that trains from scratch, in minutes or an hour, where there is no accelerator
NARROW = BackboneConfig(name="resnet18", width=32, norm="group", freeze_stages=0, pyramid_channels=64)
BOX, MASK = BoxHeadConfig(channels=256), MaskHeadConfig(channels=64)
MINUTES = TrainConfig(
    images_per_device=4, optimizer="adamw", learning_rate=0.004, weight_decay=0.01, warmup_steps=50, clip_norm=5.0, checkpoint_every=100, log_every=10
)


@named
def demo() -> Experiment:
    """The embedded data set `shapes`, from scratch, in minutes on two CPU cores.

    mrcnn train demo
    """
    rpn = RPNConfig(
        anchor_sizes=(16, 32, 64, 128, 256), samples_per_image=64, pre_nms_train=150, post_nms_train=150, pre_nms_test=100, post_nms_test=100
    )
    roi = RoIConfig(canonical_size=64, samples_per_image=32, positive_fraction=0.375)
    box = replace(BOX, candidates=200, detections=30)
    return Experiment(
        model=ModelConfig(num_classes=0, backbone=NARROW, rpn=rpn, roi=roi, box=box, mask=MASK),
        data=DataConfig(short_edge=(128,), short_edge_test=128, long_edge=160, max_objects=8, mask_size=56, threads=2),
        train=replace(MINUTES, steps=900, images_per_device=8, learning_rate=0.003, decay_steps=(660, 820)),
        evaluation=EvaluationConfig(images_per_device=8),
    )


@named
def small() -> Experiment:
    """Your own data on a small machine: a narrow ResNet-18-FPN from scratch at 256 pixels, any number of classes.

    mrcnn train small --data.dataset data/mine --directory runs/mine
    """
    rpn = RPNConfig(
        anchor_sizes=(16, 32, 64, 128, 256), samples_per_image=128, pre_nms_train=400, post_nms_train=400, pre_nms_test=400, post_nms_test=300
    )
    roi = RoIConfig(canonical_size=96, samples_per_image=64, positive_fraction=0.375)
    return Experiment(
        model=ModelConfig(num_classes=0, backbone=NARROW, rpn=rpn, roi=roi, box=replace(BOX, candidates=600), mask=MASK),
        data=DataConfig(
            dataset="data/mine", short_edge=(224, 240, 256), short_edge_test=256, long_edge=352, max_objects=64, mask_size=56, threads=2
        ),
        train=replace(MINUTES, steps=600, decay_steps=(450, 550)),
    )


@named
def nuclei() -> Experiment:
    """Nuclei in microscopy images, from scratch: many small objects (needs data/nuclei, made by `mrcnn dataset`).

    mrcnn train nuclei
    """
    rpn = RPNConfig(
        anchor_sizes=(12, 24, 48, 96, 192), samples_per_image=256, pre_nms_train=600, post_nms_train=600, pre_nms_test=1000, post_nms_test=800
    )
    roi = RoIConfig(canonical_size=128, samples_per_image=96, positive_fraction=0.5)
    return Experiment(
        model=ModelConfig(num_classes=0, backbone=NARROW, rpn=rpn, roi=roi, box=replace(BOX, candidates=800, detections=400), mask=MASK),
        data=DataConfig(
            dataset="data/nuclei", short_edge=(288, 320), short_edge_test=320, long_edge=448, max_objects=256, mask_size=56, threads=2
        ),
        train=replace(MINUTES, steps=1700, warmup_steps=100, decay_steps=(1250, 1550), evaluate_every=600),
        evaluation=EvaluationConfig(max_detections=(1, 100, 400)),
    )


@named
def mask_rcnn_r50_fpn() -> Experiment:
    """The paper's Mask R-CNN with ResNet-50-FPN on COCO; its frozen batch norm asks for a pretrained backbone.

    mrcnn train mask_rcnn_r50_fpn --train.dtype bfloat16
    """
    return Experiment(data=DataConfig(dataset="data/coco"))


@named
def mask_rcnn_r50_fpn_gn() -> Experiment:
    """The same with group norm in all its parts, which trains from scratch (He, Girshick, Dollar, 2018).

    mrcnn train mask_rcnn_r50_fpn_gn --train.dtype bfloat16
    """
    backbone = BackboneConfig(norm="group", pyramid_norm="group", freeze_stages=0)
    return Experiment(model=ModelConfig(backbone=backbone, mask=MaskHeadConfig(norm="group")), data=DataConfig(dataset="data/coco"))
