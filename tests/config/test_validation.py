"""Validation of the configuration: one sentence for each value or combination that is not allowed."""

import dataclasses
import math

import numpy as np
import pytest

from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
    BranchPoolConfig,
    Conventions,
    DataConfig,
    EvaluationConfig,
    Experiment,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PoolConfig,
    RoIConfig,
    RPNConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from mrcnn_jax.config.validation import require_whole
from mrcnn_jax.errors import InputError

OPERATIONS = "roi_align, roi_align_max, roi_pool, roi_warp, roi_warp_max"
CHOICES = [
    (BackboneConfig, "backbone", "name", "resnet51", "resnet18, resnet34, resnet50, resnet101, resnet152"),
    (BackboneConfig, "backbone", "norm", "layer", "frozen, batch, group"),
    (BackboneConfig, "backbone", "pyramid_norm", None, "none, batch, group"),
    (ModelConfig, "model", "channel_order", "grb", "rgb, bgr"),
    (ModelConfig, "model", "tasks", ("boxes", "depth"), "boxes, masks, keypoints"),
    (MaskHeadConfig, "mask", "norm", "frozen", "none, batch, group"),
    (PoolConfig, "pool", "operation", "align", OPERATIONS),
    (BranchPoolConfig, "pool", "operation", "crop", f"inherit, {OPERATIONS}"),
    (Conventions, "conventions", "anchor_rounding", "down", "none, corners, sides"),
    (Conventions, "conventions", "keypoint_score", "peak", "probability, logit"),
    (TrainConfig, "train", "optimizer", "lion", "sgd, adamw, muon"),
    (TrainConfig, "train", "dtype", "float16", "float32, bfloat16"),
]


@pytest.mark.parametrize("kind, owner, name, value, allowed", CHOICES)
def test_values_outside_the_choices_are_rejected(kind, owner, name, value, allowed):
    with pytest.raises(InputError) as error:
        kind(**{name: value})
    given = value[-1] if isinstance(value, tuple) else value
    assert str(error.value) == f"{owner}.{name} must be one of {allowed}, not {given!r}"


POSITIVE, NON_NEGATIVE = "must be greater than 0", "must not be negative"
FRACTION = "must lie between 0 and 1"
BOUNDS = [
    (BackboneConfig, "backbone", POSITIVE, {"width": 0, "pyramid_channels": -1}),
    (BackboneConfig, "backbone", NON_NEGATIVE, {"norm_epsilon": -1.0}),
    (ModelConfig, "model", POSITIVE, {"max_box_scale": 0.0, "pixel_std": (1.0, 0.0, 1.0)}),
    (ModelConfig, "model", NON_NEGATIVE, {"num_classes": -1}),
    (RPNConfig, "rpn", POSITIVE, {
        "anchor_sizes": (1, 2, 3, 4, 0), "aspect_ratios": (1, -2), "samples_per_image": 0, "pre_nms_train": 0,
        "pre_nms_test": 0, "post_nms_train": 0, "post_nms_test": 0, "convolutions": 0}),
    (RPNConfig, "rpn", FRACTION, {
        "foreground_iou": 1.1, "background_iou": -0.1, "nms_iou": 70, "positive_fraction": 2}),
    (RoIConfig, "roi", POSITIVE, {"canonical_size": 0, "samples_per_image": 0}),
    (RoIConfig, "roi", FRACTION, {"positive_fraction": -1, "foreground_iou": 50}),
    (PoolConfig, "pool", NON_NEGATIVE, {"sampling_ratio": -1}),
    (BranchPoolConfig, "pool", POSITIVE, {"size": 0}),
    (BranchPoolConfig, "pool", NON_NEGATIVE, {"sampling_ratio": -1}),
    (BoxHeadConfig, "box", POSITIVE, {
        "channels": 0, "max_candidates": 0, "max_detections": 0, "delta_weights": (1, 1, 0, 1)}),
    (BoxHeadConfig, "box", FRACTION, {"score_threshold": 5, "nms_iou": math.nan}),
    (MaskHeadConfig, "mask", POSITIVE, {"channels": 0}),
    (MaskHeadConfig, "mask", NON_NEGATIVE, {"layers": -1}),
    (Conventions, "conventions", NON_NEGATIVE, {"level_epsilon": -1e-6, "mask_target_sampling_ratio": -1}),
    (DataConfig, "data", POSITIVE, {
        "short_edge": (640, 0), "short_edge_test": 0, "max_objects": 0, "mask_size": 0, "threads": 0}),
    (DataConfig, "data", NON_NEGATIVE, {"padding_divisor": -32, "max_unreadable_images": -1}),
    (TrainConfig, "train", POSITIVE, {
        "steps": 0, "images_per_device": 0, "learning_rate": math.nan, "reference_batch": 0, "log_every": 0,
        "checkpoint_every": 0, "keep_checkpoints": 0, "decay_steps": (0, 1)}),
    (TrainConfig, "train", FRACTION, {"warmup_factor": 1.5, "decay_factor": 1.5, "momentum": 1.5}),
    (TrainConfig, "train", NON_NEGATIVE, {
        "warmup_steps": -1, "weight_decay": -1, "clip_norm": -1, "evaluate_every": -1, "seed": -1}),
    (EvaluationConfig, "evaluation", POSITIVE, {"images_per_device": 0}),
    (EvaluationConfig, "evaluation", NON_NEGATIVE, {"pictures": -1}),
    (EvaluationConfig, "evaluation", FRACTION, {"picture_score": -0.5}),
]  # fmt: skip


@pytest.mark.parametrize(
    "kind, owner, rule, name, value",
    [(*checked, name, value) for *checked, fields in BOUNDS for name, value in fields.items()],
)
def test_values_out_of_bounds_are_rejected(kind, owner, rule, name, value):
    with pytest.raises(InputError) as error:
        kind(**{name: value})
    assert str(error.value) == f"{owner}.{name} {rule}, not {value}"
    with pytest.raises(InputError):
        dataclasses.replace(kind(), **{name: value})


TYPES = [
    (TrainConfig, "train", "steps", "100", "must be int, not '100'"),
    (TrainConfig, "train", "steps", 100.0, "must be int, not 100.0"),
    (TrainConfig, "train", "steps", np.int64(100), "must be int, not np.int64(100)"),
    (TrainConfig, "train", "learning_rate", None, "must be float, not None"),
    (TrainConfig, "train", "remat", "false", "must be bool, not 'false'"),
    (TrainConfig, "train", "decay_steps", [10, 20], "must be a tuple, not [10, 20]"),
    (DataConfig, "data", "short_edge", 800, "must be a tuple, not 800"),
    (DataConfig, "data", "empty_share", "half", "must be float, not 'half'"),
    (RoIConfig, "roi", "levels", (3,), "must have 2 values, not (3,)"),
    (RPNConfig, "rpn", "anchor_sizes", [32, 64], "must be a tuple, not [32, 64]"),
    (BackboneConfig, "backbone", "freeze_stages", True, "must be int, not True"),
    (ModelConfig, "model", "num_classes", True, "must be int, not True"),
    (ModelConfig, "model", "tasks", "boxes", "must be a tuple, not 'boxes'"),
    (ModelConfig, "model", "pixel_mean", (1.0, 2.0), "must have 3 values, not (1.0, 2.0)"),
    (ModelConfig, "model", "backbone", "resnet18", "must be BackboneConfig, not 'resnet18'"),
    (Experiment, "experiment", "model", None, "must be ModelConfig, not None"),
]


@pytest.mark.parametrize("kind, owner, name, value, rule", TYPES)
def test_values_of_other_types_are_rejected(kind, owner, name, value, rule):
    with pytest.raises(InputError) as error:
        kind(**{name: value})
    assert str(error.value) == f"{owner}.{name} {rule}"


AT_MOST = [
    (DataConfig, "data", 32_768, ("long_edge", "padding_divisor")),
    (DataConfig, "data", 100_000, ("max_objects",)),
    (RPNConfig, "rpn", 100_000, ("pre_nms_test", "post_nms_test")),
    (RPNConfig, "rpn", 10_000_000, ("samples_per_image",)),
    (BoxHeadConfig, "box", 100_000, ("max_candidates", "max_detections")),
    (TrainConfig, "train", 4_096, ("images_per_device",)),
    (EvaluationConfig, "evaluation", 4_096, ("images_per_device",)),
    (EvaluationConfig, "evaluation", 10_000, ("pictures",)),
]


@pytest.mark.parametrize(
    "kind, owner, largest, name", [(*checked, name) for *checked, names in AT_MOST for name in names]
)
def test_sizes_that_cannot_be_meant_are_rejected(kind, owner, largest, name):
    assert getattr(kind(**{name: largest}), name) == largest
    with pytest.raises(InputError) as error:
        kind(**{name: largest + 1})
    assert str(error.value) == f"{owner}.{name} must be at most {largest:,}, not {largest + 1}"


@pytest.mark.parametrize("value", [0, 6, 2.0, "2", True, None])
def test_whole_numbers_have_a_range(value):
    with pytest.raises(InputError) as error:
        require_whole("--number", value, 1, 5)
    assert str(error.value) == f"--number must be a whole number from 1 to 5, not {value!r}"
    require_whole("--number", 5, 1, 5)


def model(**parts):
    """Returns a function that builds a model."""
    return lambda: ModelConfig(**parts)


C4 = {
    "backbone": BackboneConfig(features="c4"),
    "roi": RoIConfig(levels=(4, 4)),
    "box": BoxHeadConfig(fully_connected=0),
}
CONTRADICTIONS = {
    "rpn.anchor_sizes must have at least one size": lambda: RPNConfig(anchor_sizes=()),
    "rpn.aspect_ratios must have at least one ratio": lambda: RPNConfig(aspect_ratios=()),
    "rpn.background_iou must be at most rpn.foreground_iou 0.7, not 0.8":
        lambda: RPNConfig(background_iou=0.8),
    "roi.canonical_level must be 2 to 5, not 6": lambda: RoIConfig(canonical_level=6),
    "roi.canonical_level must be 2 to 5, not 1": lambda: RoIConfig(canonical_level=1),
    "roi.res5_stride must be 1 or 2, not 3": lambda: RoIConfig(res5_stride=3),
    "roi.levels must be two numbers from 2 to 5, the finest level first, not (5, 2)":
        lambda: RoIConfig((5, 2)),
    "data.short_edge must have at least one length": lambda: DataConfig(short_edge=()),
    "data.long_edge must be at least the shorter edge 1400, not 1333":
        lambda: DataConfig(short_edge=(640, 1400)),
    "data.long_edge must be at least the shorter edge 1334, not 1333":
        lambda: DataConfig(short_edge_test=1334),
    "train.decay_steps must increase, not (20, 10)": lambda: TrainConfig(decay_steps=(20, 10)),
    "train.decay_steps must increase, not (20, 20)": lambda: TrainConfig(decay_steps=(20, 20)),
    "train.accumulate must divide train.images_per_device 2, not 3": lambda: TrainConfig(accumulate=3),
    "evaluation.max_detections must increase from at least 1, not (10, 1, 100)":
        lambda: EvaluationConfig(max_detections=(10, 1, 100)),
    "evaluation.max_detections must increase from at least 1, not (0, 1, 100)":
        lambda: EvaluationConfig(max_detections=(0, 1, 100)),
    "roi.levels must be 4 4, the only level of backbone.features c4, not 2 5":
        model(**C4 | {"roi": RoIConfig()}),
    "roi.levels must be 5 5, the only level of backbone.features dc5, not 4 5":
        model(backbone=BackboneConfig(features="dc5"), roi=RoIConfig(levels=(4, 5))),
    "box.convolutions and box.fully_connected must be 0 with backbone.features c4, where res5 is the head":
        model(**C4 | {"box": BoxHeadConfig()}),
    "rpn.anchor_sizes must have one size for each of the 5 levels of backbone.features fpn, not 2":
        model(rpn=RPNConfig(anchor_sizes=(32, 64))),
    "backbone.freeze_stages must be 0 to 5 with features fpn, not 6": lambda: BackboneConfig(freeze_stages=6),
    "backbone.freeze_stages must be 0 to 4 with features c4, not 5":
        lambda: BackboneConfig(features="c4", freeze_stages=5),
    "backbone.groups and group_width must be 1 and 64 with resnet34, which has no bottlenecks to divide":
        lambda: BackboneConfig(name="resnet34", groups=32),
    "backbone.group_width x width must be a multiple of 64, not 4 x 8":
        lambda: BackboneConfig(group_width=4, width=8),
    "mask.loss softmax lets classes compete in every pixel, so mask.class_agnostic must be false with it":
        lambda: MaskHeadConfig(loss="softmax", class_agnostic=True),
    "mask.norm is for the convolutions of mask.head fcn; it must be none with mlp, not group":
        lambda: MaskHeadConfig(head="mlp", norm="group"),
    "mask.layers must be greater than 0 with mask.head mlp": lambda: MaskHeadConfig(head="mlp", layers=0),
    "conventions.soft_mask_targets must be false with mask.loss softmax, where a pixel has one class":
        model(mask=MaskHeadConfig(loss="softmax"), conventions=Conventions(soft_mask_targets=True)),
    "model.keypoint.classes must name a class that has keypoints, as model.tasks has keypoints":
        model(tasks=("boxes", "keypoints"), keypoint=KeypointHeadConfig(classes=())),
    "model.keypoint.classes must be below model.num_classes 2, not (0, 2)":
        model(num_classes=2, tasks=("boxes", "keypoints"), keypoint=KeypointHeadConfig(classes=(0, 2))),
    "model.tasks has masks and keypoints without boxes, inside which they are predicted: add boxes":
        model(tasks=("masks", "keypoints")),
    "backbone.norm_epsilon must be greater than 0 with group norm, whose variance may be 0; "
    "0 is for frozen batch norm": model(backbone=BackboneConfig(norm_epsilon=0.0, pyramid_norm="group")),
    "model.tasks must not repeat a task, as boxes boxes does": model(tasks=("boxes", "boxes")),
    "model.tasks is empty and model.rpn.proposals_from is given, so nothing would be trained":
        model(tasks=(), rpn=RPNConfig(proposals_from="runs/rpn")),
    "data.padding_divisor must be 0 or a multiple of 32 with model.backbone.features fpn, not 16":
        lambda: Experiment(data=DataConfig(padding_divisor=16)),
}  # fmt: skip


@pytest.mark.parametrize("sentence", CONTRADICTIONS)
def test_contradictions_are_rejected_in_one_sentence(sentence):
    with pytest.raises(InputError) as error:
        CONTRADICTIONS[sentence]()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "parts",
    [
        C4,
        {
            "backbone": BackboneConfig(features="c5"),
            "roi": RoIConfig(levels=(5, 5)),
            "rpn": RPNConfig(anchor_sizes=(32, 64)),
        },
        {"roi": RoIConfig(levels=(2, 2))},  # one level of a pyramid
        {"tasks": ()},
        {"tasks": ("boxes", "keypoints"), "num_classes": 1},
        {
            "tasks": ("boxes", "keypoints"),
            "num_classes": 0,
            "keypoint": KeypointHeadConfig(num_keypoints=0, classes=()),
        },
        {"rpn": RPNConfig(proposals_from="runs/rpn")},
    ],
)
def test_allowed_combinations_are_built(parts):
    experiment = Experiment(model=ModelConfig(**parts))
    assert from_dict(to_dict(experiment)) == experiment


@pytest.mark.parametrize(
    "kind, given",
    [
        (BackboneConfig, {"freeze_stages": 0}),
        (BackboneConfig, {"freeze_stages": 5}),
        (RPNConfig, {"foreground_iou": 0.5, "background_iou": 0.5}),
        (MaskHeadConfig, {"layers": 0}),
        (ModelConfig, {"num_classes": 0}),
        (BranchPoolConfig, {"sampling_ratio": 0}),
        (DataConfig, {"short_edge": (1333,), "short_edge_test": 1333}),
        (TrainConfig, {"decay_steps": (), "warmup_steps": 0, "weight_decay": 0, "momentum": 0, "seed": 0}),
        (EvaluationConfig, {"max_detections": (1, 1, 1), "picture_score": 1, "pictures": 0}),
    ],
)
def test_values_on_the_bounds_are_allowed(kind, given):
    assert dataclasses.asdict(kind(**given)).items() >= given.items()


def test_configurations_are_hashable_and_frozen():
    assert hash(Experiment()) == hash(Experiment())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().train.steps = 5
