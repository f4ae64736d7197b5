"""The paper's systems at full size, on COCO. Frozen batch norm needs a pretrained backbone."""

from dataclasses import replace

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    DataConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    TrainConfig,
)
from mrcnn_jax.presets.registry import preset

COCO = DataConfig(dataset="data/coco")
X101 = BackboneConfig(name="resnet101", groups=64, group_width=4, stride_in_1x1=False)
# the learning rate scales with the batch: 0.01 on the paper's 8 devices
ONE_IMAGE = TrainConfig(images_per_device=1)


def with_c4(model: ModelConfig) -> ModelConfig:
    """Returns the model with C4 features: 300 proposals, 64 training RoIs, res5 as the head."""
    bins = BranchPoolConfig(size=14)
    return replace(
        model,
        backbone=replace(model.backbone, features="c4"),
        rpn=replace(model.rpn, pre_nms_train=12_000, pre_nms_test=6_000, post_nms_test=300),
        roi=replace(model.roi, levels=(4, 4), samples_per_image=64),
        box=replace(model.box, pool=bins, fully_connected=0),
        mask=replace(model.mask, pool=bins, layers=0),
    )


def with_c5(model: ModelConfig, dilated: bool = False) -> ModelConfig:
    """Returns the model with the features of res5 alone, stride 32 or dilated to 16, and the heads of FPN."""
    return replace(
        model,
        backbone=replace(model.backbone, features="dc5" if dilated else "c5"),
        rpn=replace(model.rpn, pre_nms_train=12_000, pre_nms_test=6_000),
        roi=replace(model.roi, levels=(5, 5)),
    )


@preset
def mask_rcnn_r50_fpn() -> Experiment:
    """The paper's Mask R-CNN with ResNet-50-FPN on COCO.

    mrcnn train mask_rcnn_r50_fpn --train.dtype bfloat16
    """
    return Experiment(data=COCO)


@preset
def mask_rcnn_r50_fpn_gn() -> Experiment:
    """Mask R-CNN with group norm throughout, which trains from scratch (He, Girshick, Dollar, 2018).

    mrcnn train mask_rcnn_r50_fpn_gn --train.dtype bfloat16
    """
    backbone = BackboneConfig(norm="group", pyramid_norm="group", freeze_stages=0)
    box = BoxHeadConfig(convolutions=4, fully_connected=1, norm="group")
    model = ModelConfig(backbone=backbone, box=box, mask=MaskHeadConfig(norm="group"))
    return Experiment(model=model, data=COCO)


@preset
def mask_rcnn_r101_fpn() -> Experiment:
    """ResNet-101-FPN on COCO (tables 1 and 2a).

    mrcnn train mask_rcnn_r101_fpn --train.dtype bfloat16
    """
    return Experiment(model=ModelConfig(backbone=BackboneConfig(name="resnet101")), data=COCO)


@preset
def mask_rcnn_x101_fpn() -> Experiment:
    """ResNeXt-101 64x4d with FPN on COCO, one image per device (tables 1 and 2a).

    mrcnn train mask_rcnn_x101_fpn --train.dtype bfloat16
    """
    return Experiment(model=ModelConfig(backbone=X101), data=COCO, train=ONE_IMAGE)


@preset
def mask_rcnn_x152_fpn() -> Experiment:
    """ResNeXt-152-FPN with a non-local block, scale jitter and a longer schedule (table 8, enhanced).

    mrcnn train mask_rcnn_x152_fpn --train.dtype bfloat16
    """
    backbone = BackboneConfig(name="resnet152", groups=32, group_width=8, stride_in_1x1=False, non_local=True)
    train = replace(ONE_IMAGE, steps=260_000, decay_steps=(200_000, 240_000))
    data = replace(COCO, short_edge=tuple(range(640, 801, 32)))
    return Experiment(model=ModelConfig(backbone=backbone), data=data, train=train)


@preset
def mask_rcnn_r50_c4() -> Experiment:
    """ResNet-50-C4 on COCO, the base of most ablations (table 2).

    mrcnn train mask_rcnn_r50_c4 --train.dtype bfloat16
    """
    return Experiment(model=with_c4(ModelConfig()), data=COCO)


@preset
def mask_rcnn_r50_c5() -> Experiment:
    """ResNet-50-C5 with stride 32 on COCO, where RoIPool loses most (table 2d).

    mrcnn train mask_rcnn_r50_c5 --train.dtype bfloat16
    """
    return Experiment(model=with_c5(ModelConfig()), data=COCO)


@preset
def mask_rcnn_r50_dc5() -> Experiment:
    """ResNet-50 with a dilated res5, stride 16, on COCO.

    mrcnn train mask_rcnn_r50_dc5 --train.dtype bfloat16
    """
    return Experiment(model=with_c5(ModelConfig(), dilated=True), data=COCO)


@preset
def faster_rcnn_r50_fpn() -> Experiment:
    """Boxes alone: Faster R-CNN with FPN and RoIAlign on COCO (table 3).

    mrcnn train faster_rcnn_r50_fpn --train.dtype bfloat16
    """
    return Experiment(model=ModelConfig(tasks=("boxes",)), data=COCO)


@preset
def keypoint_rcnn_r50_fpn() -> Experiment:
    """Persons and their 17 keypoints on COCO (section 5).

    Prepare the data set with --keypoints; add masks to --model.tasks for both.

    mrcnn train keypoint_rcnn_r50_fpn --train.dtype bfloat16
    """
    return Experiment(
        model=ModelConfig(num_classes=1, tasks=("boxes", "keypoints")),
        data=DataConfig(dataset="data/coco_person", short_edge=tuple(range(640, 801, 32))),
        train=TrainConfig(steps=90_000, decay_steps=(60_000, 80_000)),
    )
