"""Experiments for small machines: narrow networks that train from scratch, in minutes or an hour, where there is no accelerator."""

from dataclasses import replace

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    DataConfig,
    EvaluationConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
)
from mrcnn_jax.presets.registry import preset

NARROW = BackboneConfig(name="resnet18", width=32, norm="group", freeze_stages=0, pyramid_channels=64)
BOX, MASK, KEYPOINT = BoxHeadConfig(channels=256), MaskHeadConfig(channels=64), KeypointHeadConfig(num_keypoints=0, layers=4, channels=64)
MINUTES = TrainConfig(
    images_per_device=4, optimizer="adamw", learning_rate=0.004, weight_decay=0.01, warmup_steps=50, clip_norm=5.0, checkpoint_every=100, log_every=10
)


@preset
def demo() -> Experiment:
    """The embedded data set `shapes`, from scratch, in minutes on two CPU cores.

    mrcnn train demo
    """
    rpn = RPNConfig(
        anchor_sizes=(16, 32, 64, 128, 256), samples_per_image=64, pre_nms_train=150, post_nms_train=150, pre_nms_test=100, post_nms_test=100
    )
    roi = RoIConfig(canonical_size=64, samples_per_image=32, positive_fraction=0.375)
    box = replace(BOX, max_candidates=200, max_detections=30)
    return Experiment(
        model=ModelConfig(num_classes=0, backbone=NARROW, rpn=rpn, roi=roi, box=box, mask=MASK, keypoint=KEYPOINT),
        data=DataConfig(short_edge=(128,), short_edge_test=128, long_edge=160, max_objects=8, mask_size=56, threads=2),
        train=replace(MINUTES, steps=900, images_per_device=8, learning_rate=0.003, decay_steps=(660, 820)),
        evaluation=EvaluationConfig(images_per_device=8),
    )


@preset
def small() -> Experiment:
    """Your own data on a small machine: a narrow ResNet-18-FPN from scratch at 256 pixels, any number of classes and keypoints.

    mrcnn train small --data.dataset data/mine --directory runs/mine
    """
    rpn = RPNConfig(
        anchor_sizes=(16, 32, 64, 128, 256), samples_per_image=128, pre_nms_train=400, post_nms_train=400, pre_nms_test=400, post_nms_test=300
    )
    roi = RoIConfig(canonical_size=96, samples_per_image=64, positive_fraction=0.375)
    return Experiment(
        model=ModelConfig(num_classes=0, backbone=NARROW, rpn=rpn, roi=roi, box=replace(BOX, max_candidates=600), mask=MASK, keypoint=KEYPOINT),
        data=DataConfig(
            dataset="data/mine", short_edge=(224, 240, 256), short_edge_test=256, long_edge=352, max_objects=64, mask_size=56, threads=2
        ),
        train=replace(MINUTES, steps=600, decay_steps=(450, 550)),
    )


@preset
def nuclei() -> Experiment:
    """Nuclei in microscopy images, from scratch: many small objects (needs data/nuclei, made by `mrcnn dataset`).

    mrcnn train nuclei
    """
    rpn = RPNConfig(
        anchor_sizes=(12, 24, 48, 96, 192), samples_per_image=256, pre_nms_train=600, post_nms_train=600, pre_nms_test=1000, post_nms_test=800
    )
    roi = RoIConfig(canonical_size=128, samples_per_image=96, positive_fraction=0.5)
    return Experiment(
        model=ModelConfig(num_classes=0, backbone=NARROW, rpn=rpn, roi=roi, box=replace(BOX, max_candidates=800, max_detections=400), mask=MASK),
        data=DataConfig(
            dataset="data/nuclei", short_edge=(288, 320), short_edge_test=320, long_edge=448, max_objects=256, mask_size=56, threads=2
        ),
        train=replace(MINUTES, steps=1700, warmup_steps=100, decay_steps=(1250, 1550), evaluate_every=600),
        evaluation=EvaluationConfig(max_detections=(1, 100, 400)),
    )


@preset
def shapes_keypoints() -> Experiment:
    """Boxes, masks and the seven keypoints of the puppets in `shapes`, together, on two CPU cores.

    mrcnn train shapes_keypoints
    """
    base = demo()
    return replace(
        base,
        model=replace(base.model, tasks=("boxes", "masks", "keypoints")),
        train=replace(base.train, steps=1500, decay_steps=(1100, 1350)),
    )


@preset
def shapes_c5() -> Experiment:
    """The coarsest features, stride 32, on `shapes` at twice its size: what RoIAlign is for (table 2d).

    mrcnn train shapes_c5
    mrcnn train shapes_c5 --directory runs/shapes_c5_roipool --model.pool.operation roi_pool
    """
    base = demo()
    rpn = replace(base.model.rpn, anchor_sizes=(32, 64, 128, 256), pre_nms_train=400, pre_nms_test=300)
    return replace(
        base,
        model=replace(base.model, backbone=replace(NARROW, features="c5"), rpn=rpn, roi=replace(base.model.roi, levels=(5, 5))),
        data=replace(base.data, short_edge=(256,), short_edge_test=256, long_edge=320),
    )
