"""The paper's system on Cityscapes."""

from dataclasses import replace

from mrcnn_jax.config import DataConfig, Experiment, ModelConfig
from mrcnn_jax.presets.coco import ONE_IMAGE
from mrcnn_jax.presets.registry import preset


@preset
def mask_rcnn_r50_fpn_cityscapes() -> Experiment:
    """The paper's Mask R-CNN on Cityscapes, one image per device, 24,000 steps of 8 (appendix A).

    mrcnn train mask_rcnn_r50_fpn_cityscapes --train.dtype bfloat16
    """
    return Experiment(
        model=ModelConfig(num_classes=8),
        data=DataConfig(
            dataset="data/cityscapes", short_edge=tuple(range(800, 1025, 32)), short_edge_test=1024,
            long_edge=2048,
        ),
        train=replace(ONE_IMAGE, steps=24_000, decay_steps=(18_000,)),
    )
