"""Multi-task network cascades at full size, on COCO. Frozen batch norm needs a pretrained backbone."""

from dataclasses import replace

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.presets.coco import COCO
from mrcnn_jax.presets.registry import preset

BINS = BranchPoolConfig(size=14)
MNC_R101_C4 = ModelConfig(
    system="mnc",
    backbone=BackboneConfig(name="resnet101", features="c4"),
    rpn=RPNConfig(
        anchor_sizes=(64, 128, 256, 512), pre_nms_train=12_000, pre_nms_test=6_000, post_nms_train=300,
        post_nms_test=300,
    ),
    roi=RoIConfig(levels=(4, 4), samples_per_image=64, positive_fraction=0.3),
    pool=PoolConfig(operation="roi_warp_max"),
    box=BoxHeadConfig(pool=BINS, fully_connected=0, score_threshold=1e-3, nms_iou=0.3),
    mask=MaskHeadConfig(pool=BINS, head="mlp", layers=1, class_agnostic=True, threshold=0.4),
)  # fmt: skip
SCHEDULE = TrainConfig(
    steps=320_000, decay_steps=(256_000,), images_per_device=1, learning_rate=0.002, weight_decay=5e-4
)
"""0.001 for 8 images; the published text has no schedule for COCO: that of VOC, times eight."""


@preset
def mnc_r101_c4() -> Experiment:
    """Multi-task network cascades with ResNet-101-C4 on COCO, the winner of 2015 (table 1).

    mrcnn train mnc_r101_c4 --train.dtype bfloat16
    """
    data = replace(COCO, short_edge=(600,), short_edge_test=600, long_edge=1000)
    return Experiment(model=MNC_R101_C4, data=data, train=SCHEDULE)
