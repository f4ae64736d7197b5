"""FCIS at full size, on COCO. Frozen batch norm needs a pretrained backbone."""

from dataclasses import replace

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    EvaluationConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.presets.coco import COCO
from mrcnn_jax.presets.registry import preset

FCIS_R101 = ModelConfig(
    system="fcis",
    backbone=BackboneConfig(name="resnet101", features="dc5"),
    rpn=RPNConfig(
        anchor_sizes=(64, 128, 256, 512), pre_nms_train=6_000, pre_nms_test=6_000, post_nms_train=300,
        post_nms_test=300, min_size=2,
    ),
    roi=RoIConfig(levels=(5, 5), samples_per_image=128),
    box=BoxHeadConfig(delta_weights=(5.0, 5.0, 2.0, 2.0), score_threshold=1e-3, nms_iou=0.3, min_size=2),
    mask=MaskHeadConfig(threshold=0.4),
)  # fmt: skip
SCHEDULE = TrainConfig(
    steps=240_000, decay_steps=(160_000,), images_per_device=1, learning_rate=0.008, weight_decay=5e-4,
    warmup_steps=250, warmup_factor=0.1,
)  # fmt: skip
"""Eight images a step, at 0.004: the released code has 0.0005 for a sum over eight devices."""


@preset
def fcis_r101() -> Experiment:
    """FCIS with hard examples and a dilated ResNet-101 on COCO, the winner of 2016 (table 1).

    mrcnn train fcis_r101 --train.dtype bfloat16
    """
    data = replace(COCO, short_edge=(600,), short_edge_test=600, long_edge=1000)
    return Experiment(model=FCIS_R101, data=data, train=SCHEDULE)


@preset
def fcis_plus_r101() -> Experiment:
    """FCIS+++: FCIS trained at six scales, and tested at all of them and mirrored (table 1).

    mrcnn train fcis_plus_r101 --train.dtype bfloat16
    """
    scales = 480, 576, 688, 864, 1200, 1400
    data = replace(fcis_r101().data, short_edge=scales, long_edge=2333)
    evaluation = EvaluationConfig(tta_scales=scales, tta_flip=True)
    return Experiment(model=FCIS_R101, data=data, train=SCHEDULE, evaluation=evaluation)
