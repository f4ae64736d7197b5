"""Models of Detectron2's zoo with few channels."""

from functools import cache

import numpy as np
from library_models import zero_tensors

from mrcnn_jax.config import (
    DETECTRON2,
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    DataConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIConfig,
    RPNConfig,
)
from mrcnn_jax.weights import detectron2

WIDTH, PYRAMID, HIDDEN = 8, 16, 24  # channels of the narrow models
NORMS = {"GN": "group", "SyncBN": "batch"}
JITTER = (640, 672, 704, 736, 768, 800)


def zoo(kind="mask", features="fpn", depth=50, groups=1, norm="FrozenBN", width=WIDTH) -> Experiment:
    """Returns the experiment of a model of Detectron2's zoo, but with fewer channels."""
    fpn, c4 = features == "fpn", features == "c4"
    has_masks, has_keypoints, heavy = kind == "mask", kind == "keypoint", norm in NORMS
    pyramid_norm = NORMS.get(norm, "none")
    letter = f"X_{depth}_{groups}x{8 * width // 64}d" if groups > 1 else f"R_{depth}"
    tasks = {"faster": (), "mask": ("masks",), "keypoint": ("keypoints",)}[kind]
    model = ModelConfig(
        num_classes=1 if has_keypoints else 80,
        tasks=("boxes", *tasks),
        backbone=BackboneConfig(
            name=f"resnet{depth}",
            groups=groups,
            group_width=8 if groups > 1 else 64,
            width=width,
            features=features,
            norm=NORMS.get(norm, "frozen"),
            norm_epsilon=1e-5,
            freeze_stages=2,
            stride_in_1x1=groups == 1 and norm != "GN",
            pyramid_channels=PYRAMID * width // WIDTH if fpn else 256,
            pyramid_norm=pyramid_norm,
        ),
        rpn=RPNConfig(
            smooth_l1_beta=0.0,
            pre_nms_train=2000 if fpn else 12000,
            pre_nms_test=1000 if fpn else 6000,
            post_nms_train=1500 if has_keypoints else 1000 if fpn else 2000,
            post_nms_test=1000,
        ),
        roi=RoIConfig(levels={"fpn": (2, 5), "c4": (4, 4), "dc5": (5, 5)}[features]),
        pool=PoolConfig(sampling_ratio=0),
        box=BoxHeadConfig(
            pool=BranchPoolConfig(14 if c4 else 7),
            convolutions=4 if heavy else 0,
            convolution_channels=32 if heavy else 256,
            norm=pyramid_norm,
            fully_connected=0 if c4 else 1 if heavy else 2,
            channels=1024 if c4 else HIDDEN,
            smooth_l1_beta=0.5 if has_keypoints else 0.0,
        ),
        mask=MaskHeadConfig(
            layers=0 if c4 else 4, channels=(32 if heavy else 16) if has_masks else 256, norm=pyramid_norm
        ),
        keypoint=KeypointHeadConfig(channels=16 if has_keypoints else 512),
        conventions=DETECTRON2,
        channel_order="bgr",
        pixel_mean=(103.53, 116.28, 123.675),
        pixel_std=(57.375, 57.12, 58.395) if groups > 1 else (1.0, 1.0, 1.0),
    )
    data = DataConfig(dataset="data/coco", short_edge=JITTER, padding_divisor=32 if fpn else 1)
    return Experiment(name=f"{kind}_rcnn_{letter}_{features.upper()}", model=model, data=data)


@cache
def zoo_tensors(experiment: Experiment) -> dict[str, np.ndarray]:
    """Returns zeros under Detectron2's names."""
    return zero_tensors(experiment.model, detectron2.make_param_map)


def differences(ours, theirs, path=""):
    """Returns the pairs of values in which two nested dicts differ, by path."""
    found = {}
    for name, value in ours.items():
        if isinstance(value, dict):
            found |= differences(value, theirs[name], f"{path}{name}.")
        elif value != theirs[name]:
            found[f"{path}{name}"] = (value, theirs[name])
    return found
