"""Defaults of the configuration: the paper's values, and descriptions of all fields."""

import dataclasses

import pytest
from paths import REPOSITORY
from scripts import load_script

from mrcnn_jax import presets
from mrcnn_jax.config import (
    DETECTRON,
    DETECTRON2,
    OURS,
    TORCHVISION,
    BranchPoolConfig,
    Conventions,
    DataConfig,
    Experiment,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIPooling,
)

PAPER = {
    # section 3.1, training
    "model.roi.foreground_iou": 0.5,
    "model.roi.samples_per_image": 512,  # with FPN; 64 is the C4 system's
    "model.roi.positive_fraction": 0.25,  # positives : negatives = 1 : 3
    "model.rpn.anchor_sizes": (32, 64, 128, 256, 512),  # five scales, with FPN one per level
    "model.rpn.aspect_ratios": (0.5, 1.0, 2.0),
    "data.short_edge": (800,),
    "data.augment.flip": 0.5,  # the only augmentation
    "train.images_per_device": 2,
    "train.reference_batch": 16,  # two images on each of eight devices
    "train.steps": 160_000,
    "train.learning_rate": 0.02,
    "train.decay_steps": (120_000,),
    "train.decay_factor": 0.1,
    "train.optimizer": "sgd",
    "train.momentum": 0.9,
    "train.weight_decay": 1e-4,
    "train.clip_norm": 0.0,
    # section 3, network
    "model.num_classes": 80,
    "model.backbone.name": "resnet50",
    "model.backbone.width": 64,
    "model.backbone.norm": "frozen",
    "model.backbone.pyramid_channels": 256,
    "model.pool.operation": "roi_align",
    "model.pool.sampling_ratio": 2,  # four points per bin
    "model.box.pool.size": 7,
    "model.box.fully_connected": 2,
    "model.box.convolutions": 0,
    "model.box.channels": 1024,
    "model.tasks": ("boxes", "masks"),
    "model.mask.pool.size": 14,
    "model.mask_size": 28,
    "model.mask.head": "fcn",
    "model.mask.layers": 4,
    "model.mask.loss": "sigmoid",
    "model.mask.class_agnostic": False,
    "model.mask.channels": 256,
    # section 3.1, inference
    "model.rpn.post_nms_test": 1000,
    "model.box.max_detections": 100,
    "data.short_edge_test": 800,
    "evaluation.max_detections": (1, 10, 100),
    # Faster R-CNN, FPN and the released code, which the paper refers to
    "data.long_edge": 1333,
    "model.roi.canonical_size": 224,
    "model.roi.canonical_level": 4,
    "model.rpn.foreground_iou": 0.7,
    "model.rpn.background_iou": 0.3,
    "model.rpn.samples_per_image": 256,
    "model.rpn.positive_fraction": 0.5,
    "model.rpn.nms_iou": 0.7,
    "model.rpn.pre_nms_train": 2000,
    "model.rpn.post_nms_train": 2000,
    "model.rpn.pre_nms_test": 1000,
    "model.rpn.smooth_l1_beta": pytest.approx(1 / 9),
    "model.box.delta_weights": (10, 10, 5, 5),
    "model.box.smooth_l1_beta": 1.0,
    "model.box.score_threshold": 0.05,
    "model.box.nms_iou": 0.5,
    "model.backbone.freeze_stages": 2,
    "model.backbone.stride_in_1x1": True,
    "train.warmup_steps": 500,
    "train.warmup_factor": pytest.approx(1 / 3),
    # a deliberate deviation: half-pixel centres
    "model.conventions.roi_half_pixel": True,
    # section 5, keypoints
    "model.keypoint.num_keypoints": 17,
    "model.keypoint.layers": 8,
    "model.keypoint.channels": 512,
    "model.keypoint_size": 56,
}


def field(config, path: str):
    for name in path.split("."):
        config = getattr(config, name)
    return config


def test_defaults_are_the_papers():
    assert {path: field(Experiment(), path) for path in PAPER} == PAPER
    assert presets.get("mask_rcnn_r50_fpn") == Experiment(data=DataConfig(dataset="data/coco"))


# ---- pooling and conventions


def test_pool_of_a_branch_is_inherited_from_the_model():
    model = ModelConfig(pool=PoolConfig("roi_warp_max", 0))
    assert model.pool_of("box") == RoIPooling(7, "warp", "max", 0, True)
    assert model.pool_of("mask") == model.pool_of("keypoint") == RoIPooling(14, "warp", "max", 0, True)


def test_pool_of_a_branch_can_be_its_own():
    own = MaskHeadConfig(pool=BranchPoolConfig(size=10, operation="roi_align", sampling_ratio=1))
    model = ModelConfig(pool=PoolConfig("roi_pool"), mask=own, conventions=Conventions(roi_half_pixel=False))
    assert model.pool_of("mask") == RoIPooling(10, "align", "average", 1, False)
    assert model.pool_of("box") == RoIPooling(7, "pool", "max", 2, False)
    assert model.mask_size == 20


def test_named_conventions_differ_from_ours_where_the_libraries_do():
    assert Conventions() == OURS == ModelConfig().conventions
    assert len({OURS, TORCHVISION, DETECTRON2, DETECTRON}) == 4
    assert DETECTRON2.resize == "antialiased" and DETECTRON2.roi_half_pixel
    assert not TORCHVISION.roi_half_pixel and not DETECTRON.roi_half_pixel and DETECTRON.roi_inclusive


# ---- descriptions


@pytest.fixture(scope="module")
def reference():
    """The module that generates the configuration reference of the documentation."""
    return load_script(REPOSITORY / "docs" / "_config_reference.py")


def test_every_field_has_a_description(reference):
    for _, config in reference.sections(Experiment()):
        described = reference.field_descriptions(type(config))
        for part in dataclasses.fields(config):
            if not dataclasses.is_dataclass(getattr(config, part.name)):
                text = described.get(part.name, "")
                assert text.endswith(".") and text[0] == text[0].upper(), (type(config).__name__, part.name)


def test_reference_page_lists_every_field_with_default_and_bounds(reference):
    page = reference.configuration_reference()
    assert "| `--train.steps` | int > 0 | `160000` | Training steps. |" in page
    assert "| `--model.box.pool.sampling-ratio` | int ≥ 0 and ≤ 256, or none | `none` |" in page
    assert "| `--model.rpn.anchor-sizes` | any number of float > 0 | `32 64 128 256 512` |" in page
    assert page.count("\n| `--") > 110 and "\n## model.conventions\n" in page
