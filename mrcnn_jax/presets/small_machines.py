"""Experiments for small machines, narrow networks that train from scratch, and one that fine-tunes."""

from dataclasses import replace

from mrcnn_jax.config import (
    AUGMENTATIONS,
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
SMALL_MODEL = ModelConfig(
    num_classes=0,  # from the data set, as are the keypoints
    backbone=NARROW,
    box=BoxHeadConfig(channels=256),
    mask=MaskHeadConfig(channels=64),
    keypoint=KeypointHeadConfig(num_keypoints=0, layers=4, channels=64),
)
SMALL_TRAIN = TrainConfig(
    images_per_device=4, optimizer="adamw", learning_rate=0.004, weight_decay=0.01, warmup_steps=50,
    clip_norm=5.0, checkpoint_every=100, log_every=10,
)  # fmt: skip
SHAPES_TRAIN = replace(
    SMALL_TRAIN, steps=900, images_per_device=8, learning_rate=0.003, decay_steps=(660, 820)
)


@preset
def demo() -> Experiment:
    """The generated data set `shapes`, from scratch, in minutes on two CPU cores.

    mrcnn train demo
    """
    model = replace(
        SMALL_MODEL,
        rpn=RPNConfig(
            anchor_sizes=(16, 32, 64, 128, 256), samples_per_image=64, pre_nms_train=150, post_nms_train=150,
            pre_nms_test=100, post_nms_test=100,
        ),
        roi=RoIConfig(canonical_size=64, samples_per_image=32, positive_fraction=0.375),
        box=replace(SMALL_MODEL.box, max_candidates=200, max_detections=30),
    )  # fmt: skip
    return Experiment(
        model=model,
        data=DataConfig(
            short_edge=(128,), short_edge_test=128, long_edge=160, max_objects=8, mask_size=56, threads=2
        ),
        train=replace(
            SHAPES_TRAIN, optimizer="muon", learning_rate=0.004, steps=500, decay_steps=(370, 455)
        ),
        evaluation=EvaluationConfig(images_per_device=8),
    )


@preset
def small() -> Experiment:
    """Your own data, any classes and keypoints, at 256 pixels, from scratch on a small machine.

    mrcnn train small --data.dataset data/mine --directory runs/mine
    """
    model = replace(
        SMALL_MODEL,
        rpn=RPNConfig(
            anchor_sizes=(16, 32, 64, 128, 256), samples_per_image=128, pre_nms_train=400, post_nms_train=400,
            pre_nms_test=400, post_nms_test=300,
        ),
        roi=RoIConfig(canonical_size=96, samples_per_image=64, positive_fraction=0.375),
        box=replace(SMALL_MODEL.box, max_candidates=600),
    )  # fmt: skip
    data = DataConfig(
        dataset="data/mine", short_edge=(224, 240, 256), short_edge_test=256, long_edge=352, max_objects=64,
        mask_size=56, threads=2,
    )  # fmt: skip
    return Experiment(model=model, data=data, train=replace(SMALL_TRAIN, steps=600, decay_steps=(450, 550)))


@preset
def finetune() -> Experiment:
    """Your own data from trained weights: a detector, or a backbone alone under a ResNet-FPN detector.

    Steps, image sizes and augmentation fit the number of images and the machine (``presets.fine_tuning``).

    mrcnn train finetune --train.init-from weights/resnet50 --data.dataset data/mine
    """
    train = TrainConfig(
        optimizer="adamw", learning_rate=0.0016, weight_decay=0.01, clip_norm=5.0, layer_decay=0.7,
        schedule="cosine", ema_decay=0.99,
    )  # fmt: skip
    model = ModelConfig(num_classes=0, keypoint=KeypointHeadConfig(num_keypoints=0))
    data = DataConfig(dataset="data/mine", augment=AUGMENTATIONS["light"])
    return Experiment(model=model, data=data, train=train)


@preset
def nuclei() -> Experiment:
    """Nuclei in microscopy images, many small objects, from scratch (needs data/nuclei; see `mrcnn dataset`).

    mrcnn train nuclei
    """
    model = replace(
        SMALL_MODEL,
        rpn=RPNConfig(
            anchor_sizes=(12, 24, 48, 96, 192), samples_per_image=256, pre_nms_train=600, post_nms_train=600,
            pre_nms_test=1000, post_nms_test=800,
        ),
        roi=RoIConfig(canonical_size=128, samples_per_image=96, positive_fraction=0.5),
        box=replace(SMALL_MODEL.box, max_candidates=800, max_detections=400),
        keypoint=KeypointHeadConfig(),
    )  # fmt: skip
    data = DataConfig(
        dataset="data/nuclei", short_edge=(288, 320), short_edge_test=320, long_edge=448, max_objects=256,
        mask_size=56, threads=2,
    )  # fmt: skip
    return Experiment(
        model=model,
        data=data,
        train=replace(
            SMALL_TRAIN, steps=1700, warmup_steps=100, decay_steps=(1250, 1550), evaluate_every=600
        ),
        evaluation=EvaluationConfig(max_detections=(1, 100, 400)),
    )


@preset
def shapes_keypoints() -> Experiment:
    """Boxes, masks and the seven keypoints of the puppets in `shapes`, on two CPU cores.

    mrcnn train shapes_keypoints
    """
    base = demo()
    return replace(
        base,
        model=replace(base.model, tasks=("boxes", "masks", "keypoints")),
        train=replace(SHAPES_TRAIN, steps=1500, decay_steps=(1100, 1350)),
    )


@preset
def shapes_c5() -> Experiment:
    """The coarsest features, stride 32, on `shapes` at twice its size, where RoIAlign matters (table 2d).

    mrcnn train shapes_c5
    mrcnn train shapes_c5 --directory runs/shapes_c5_roipool --model.pool.operation roi_pool
    """
    base = demo()
    rpn = replace(base.model.rpn, anchor_sizes=(32, 64, 128, 256), pre_nms_train=400, pre_nms_test=300)
    roi = replace(base.model.roi, levels=(5, 5))
    return replace(
        base,
        model=replace(base.model, backbone=replace(NARROW, features="c5"), rpn=rpn, roi=roi),
        data=replace(base.data, short_edge=(256,), short_edge_test=256, long_edge=320),
        train=SHAPES_TRAIN,
    )
