"""The experiment as data: the paper's defaults, one sentence for each broken rule, JSON there and back."""

import dataclasses
import json
import math

import pytest

from mrcnn_jax import presets
from mrcnn_jax.config import (
    BackboneConfig,
    BoxHeadConfig,
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
    read_experiment,
    to_dict,
)
from mrcnn_jax.errors import InputError


def field(experiment: Experiment, path: str):
    for name in path.split("."):
        experiment = getattr(experiment, name)
    return experiment


def changed(path: str, value) -> dict:
    """The default experiment as a dictionary, with one field set."""
    values = inner = to_dict(Experiment())
    *parts, last = path.split(".")
    for part in parts:
        inner = inner[part]
    inner[last] = value
    return values


# ---- the paper


@pytest.mark.parametrize(
    "path, value",
    [
        # section 3.1, training
        ("roi.foreground_iou", 0.5),
        ("roi.samples_per_image", 512),  # with FPN; 64 is the C4 system's
        ("roi.positive_fraction", 0.25),  # positives : negatives = 1 : 3
        ("rpn.anchor_sizes", (32, 64, 128, 256, 512)),  # five scales, with FPN one a level
        ("rpn.aspect_ratios", (0.5, 1.0, 2.0)),
        ("data.short_edge", (800,)),
        ("data.flip", True),  # the only augmentation
        ("train.images_per_device", 2),
        ("train.reference_batch", 16),  # two images on each of eight devices
        ("train.steps", 160_000),
        ("train.learning_rate", 0.02),
        ("train.decay_steps", (120_000,)),
        ("train.decay_factor", 0.1),
        ("train.optimizer", "sgd"),
        ("train.momentum", 0.9),
        ("train.weight_decay", 1e-4),
        ("train.clip_norm", 0.0),
        # section 3, network
        ("num_classes", 80),
        ("backbone.name", "resnet50"),
        ("backbone.width", 64),
        ("backbone.norm", "frozen"),
        ("backbone.pyramid_channels", 256),
        ("box.pool.operation", "align"),
        ("box.pool.reduction", "average"),
        ("box.pool.sampling_ratio", 2),  # four points a bin
        ("box.pool.size", 7),
        ("box.fully_connected", 2),
        ("box.convolutions", 0),
        ("box.channels", 1024),
        ("tasks", ("boxes", "masks")),
        ("mask.pool.size", 14),
        ("mask_size", 28),
        ("mask.head", "fcn"),
        ("mask.layers", 4),
        ("mask.loss", "sigmoid"),
        ("mask.class_agnostic", False),
        ("mask.channels", 256),
        # section 3.1, inference
        ("rpn.post_nms_test", 1000),
        ("box.detections", 100),
        ("data.short_edge_test", 800),
        ("evaluation.max_detections", (1, 10, 100)),
        # Faster R-CNN, FPN and the released code, which the paper refers to
        ("data.long_edge", 1333),
        ("roi.canonical_size", 224),
        ("roi.canonical_level", 4),
        ("rpn.foreground_iou", 0.7),
        ("rpn.background_iou", 0.3),
        ("rpn.samples_per_image", 256),
        ("rpn.positive_fraction", 0.5),
        ("rpn.nms_iou", 0.7),
        ("rpn.pre_nms_train", 2000),
        ("rpn.post_nms_train", 2000),
        ("rpn.pre_nms_test", 1000),
        ("rpn.smooth_l1_beta", pytest.approx(1 / 9)),
        ("box.delta_weights", (10, 10, 5, 5)),
        ("box.smooth_l1_beta", 1.0),
        ("box.score_threshold", 0.05),
        ("box.nms_iou", 0.5),
        ("backbone.freeze_stages", 2),
        ("backbone.stride_in_1x1", True),
        ("train.warmup_steps", 500),
        ("train.warmup_factor", pytest.approx(1 / 3)),
        # a deliberate deviation: the half pixel
        ("box.pool.aligned", True),
        ("mask.pool.aligned", True),
        # section 5, keypoints
        ("keypoint.num_keypoints", 17),
        ("keypoint.layers", 8),
        ("keypoint.channels", 512),
        ("keypoint_size", 56),
    ],
)
def test_defaults_are_the_papers(path, value):
    experiment = Experiment()
    section = path.split(".")[0]
    assert field(experiment if section in ("data", "train", "evaluation") else experiment.model, path) == value


# ---- rules


@pytest.mark.parametrize(
    "build, given, sentence",
    [
        (BackboneConfig, {"name": "resnet51"}, "backbone.name must be one of resnet18, resnet34, resnet50, resnet101, resnet152, not 'resnet51'"),
        (BackboneConfig, {"norm": "layer"}, "backbone.norm must be one of frozen, batch, group, not 'layer'"),
        (BackboneConfig, {"pyramid_norm": None}, "backbone.pyramid_norm must be one of none, batch, group, not None"),
        (BackboneConfig, {"width": 0}, "backbone.width must be greater than 0, not 0"),
        (BackboneConfig, {"pyramid_channels": -1}, "backbone.pyramid_channels must be greater than 0, not -1"),
        (BackboneConfig, {"norm_epsilon": -1.0}, "backbone.norm_epsilon must not be negative, not -1.0"),
        (DataConfig, {"padding_divisor": -32}, "data.padding_divisor must not be negative, not -32"),
        (ModelConfig, {"delta_clip": 0.0}, "model.delta_clip must be greater than 0, not 0.0"),
        (ModelConfig, {"channel_order": "grb"}, "model.channel_order must be one of rgb, bgr, not 'grb'"),
        (RPNConfig, {"anchor_rounding": "down"}, "rpn.anchor_rounding must be one of none, corners, sides, not 'down'"),
        (MaskHeadConfig, {"loss": "softmax", "soft_targets": True}, "mask.soft_targets has no meaning with mask.loss softmax, where a pixel has one class"),
        (KeypointHeadConfig, {"score": "peak"}, "keypoint.score must be one of probability, logit, not 'peak'"),
        (BackboneConfig, {"freeze_stages": 6}, "backbone.freeze_stages must be 0 to 5 with features fpn, not 6"),
        (RPNConfig, {"anchor_sizes": ()}, "rpn.anchor_sizes must be greater than 0, not ()"),
        (RPNConfig, {"anchor_sizes": (1, 2, 3, 4, 0)}, "rpn.anchor_sizes must be greater than 0, not (1, 2, 3, 4, 0)"),
        (RPNConfig, {"aspect_ratios": ()}, "rpn.aspect_ratios must be greater than 0, not ()"),
        (RPNConfig, {"aspect_ratios": (1, -2)}, "rpn.aspect_ratios must be greater than 0, not (1, -2)"),
        (RPNConfig, {"foreground_iou": 1.1}, "rpn.foreground_iou must lie between 0 and 1, not 1.1"),
        (RPNConfig, {"background_iou": -0.1}, "rpn.background_iou must lie between 0 and 1, not -0.1"),
        (RPNConfig, {"background_iou": 0.8}, "rpn.background_iou must not exceed rpn.foreground_iou"),
        (RPNConfig, {"nms_iou": 70}, "rpn.nms_iou must lie between 0 and 1, not 70"),
        (RPNConfig, {"positive_fraction": 2}, "rpn.positive_fraction must lie between 0 and 1, not 2"),
        *[(RPNConfig, {name: 0}, f"rpn.{name} must be greater than 0, not 0")
          for name in ("samples_per_image", "pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test")],
        *[(RoIConfig, {name: 0}, f"roi.{name} must be greater than 0, not 0") for name in ("canonical_size", "samples_per_image")],
        (RoIConfig, {"canonical_level": 6}, "roi.canonical_level must be 2 to 5, not 6"),
        (RoIConfig, {"canonical_level": 1}, "roi.canonical_level must be 2 to 5, not 1"),
        (RoIConfig, {"positive_fraction": -1}, "roi.positive_fraction must lie between 0 and 1, not -1"),
        (RoIConfig, {"foreground_iou": 50}, "roi.foreground_iou must lie between 0 and 1, not 50"),
        *[(BoxHeadConfig, {name: 0}, f"box.{name} must be greater than 0, not 0") for name in ("channels", "candidates", "detections")],
        (BoxHeadConfig, {"delta_weights": (1, 1, 0, 1)}, "box.delta_weights must be greater than 0, not (1, 1, 0, 1)"),
        (BoxHeadConfig, {"score_threshold": 5}, "box.score_threshold must lie between 0 and 1, not 5"),
        (BoxHeadConfig, {"nms_iou": math.nan}, "box.nms_iou must lie between 0 and 1, not nan"),
        (MaskHeadConfig, {"norm": "frozen"}, "mask.norm must be one of none, batch, group, not 'frozen'"),
        (PoolConfig, {"size": 0}, "pool.size must be greater than 0, not 0"),
        (PoolConfig, {"sampling_ratio": -1}, "pool.sampling_ratio must not be negative, not -1"),
        (PoolConfig, {"operation": "crop"}, "pool.operation must be one of align, pool, warp, not 'crop'"),
        (PoolConfig, {"operation": "pool"}, "pool.reduction must be max where pool.operation is pool: RoIPool takes the maximum of a bin"),
        (MaskHeadConfig, {"channels": 0}, "mask.channels must be greater than 0, not 0"),
        (MaskHeadConfig, {"layers": -1}, "mask.layers must not be negative, not -1"),
        (ModelConfig, {"num_classes": -1}, "model.num_classes must not be negative, not -1"),
        (ModelConfig, {"pixel_std": (1.0, 0.0, 1.0)}, "model.pixel_std must be greater than 0, not (1.0, 0.0, 1.0)"),
        (DataConfig, {"short_edge": ()}, "data.short_edge must be greater than 0, not ()"),
        (DataConfig, {"short_edge": (640, 0)}, "data.short_edge must be greater than 0, not (640, 0)"),
        (DataConfig, {"short_edge": (640, 1400)}, "data.long_edge must be at least the shorter edge 1400, not 1333"),
        (DataConfig, {"short_edge_test": 1334}, "data.long_edge must be at least the shorter edge 1334, not 1333"),
        *[(DataConfig, {name: 0}, f"data.{name} must be greater than 0, not 0")
          for name in ("short_edge_test", "max_objects", "mask_size", "threads")],
        (TrainConfig, {"optimizer": "lion"}, "train.optimizer must be one of sgd, adamw, not 'lion'"),
        (TrainConfig, {"dtype": "float16"}, "train.dtype must be one of float32, bfloat16, not 'float16'"),
        *[(TrainConfig, {name: 0}, f"train.{name} must be greater than 0, not 0")
          for name in ("steps", "images_per_device", "learning_rate", "reference_batch", "log_every", "checkpoint_every", "keep_checkpoints")],
        (TrainConfig, {"learning_rate": math.nan}, "train.learning_rate must be greater than 0, not nan"),
        *[(TrainConfig, {name: 1.5}, f"train.{name} must lie between 0 and 1, not 1.5") for name in ("warmup_factor", "decay_factor", "momentum")],
        (TrainConfig, {"decay_steps": (20, 10)}, "train.decay_steps must increase, not (20, 10)"),
        (TrainConfig, {"decay_steps": (20, 20)}, "train.decay_steps must increase, not (20, 20)"),
        *[(TrainConfig, {name: -1}, f"train.{name} must not be negative, not -1")
          for name in ("warmup_steps", "weight_decay", "clip_norm", "evaluate_every", "seed")],
        (EvaluationConfig, {"images_per_device": 0}, "evaluation.images_per_device must be greater than 0, not 0"),
        (EvaluationConfig, {"pictures": 0}, "evaluation.pictures must be greater than 0, not 0"),
        (EvaluationConfig, {"max_detections": (10, 1, 100)}, "evaluation.max_detections must increase from at least 1, not (10, 1, 100)"),
        (EvaluationConfig, {"max_detections": (0, 1, 100)}, "evaluation.max_detections must increase from at least 1, not (0, 1, 100)"),
        (EvaluationConfig, {"picture_score": -0.5}, "evaluation.picture_score must lie between 0 and 1, not -0.5"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_named_in_one_sentence(build, given, sentence):
    with pytest.raises(InputError) as error:
        build(**given)
    assert str(error.value) == sentence
    with pytest.raises(InputError):
        dataclasses.replace(build(), **given)


C4 = {"backbone": BackboneConfig(features="c4"), "roi": RoIConfig(levels=(4, 4)), "box": BoxHeadConfig(fully_connected=0)}


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: ModelConfig(**C4 | {"roi": RoIConfig()}),
         "roi.levels 2 5 reads a pyramid, but backbone.features c4 is level 4 alone: it must be 4 4"),
        (lambda: ModelConfig(backbone=BackboneConfig(features="dc5"), roi=RoIConfig(levels=(4, 5))),
         "roi.levels 4 5 reads a pyramid, but backbone.features dc5 is level 5 alone: it must be 5 5"),
        (lambda: ModelConfig(**C4 | {"box": BoxHeadConfig()}),
         "backbone.features c4 has res5 in place of a head: box.convolutions and box.fully_connected must be 0"),
        (lambda: ModelConfig(rpn=RPNConfig(anchor_sizes=(32, 64))),
         "rpn.anchor_sizes needs one size for each of the 5 levels of backbone.features fpn, not 2"),
        (lambda: BackboneConfig(features="c4", freeze_stages=5), "backbone.freeze_stages must be 0 to 4 with features c4, not 5"),
        (lambda: BackboneConfig(name="resnet34", groups=32),
         "backbone.groups and group_width divide a bottleneck, which resnet34 does not have: leave them 1 and 64"),
        (lambda: BackboneConfig(group_width=4, width=8), "backbone.group_width x width must be a multiple of 64, not 4 x 8"),
        (lambda: MaskHeadConfig(loss="softmax", class_agnostic=True),
         "mask.loss softmax lets classes compete in every pixel, but mask.class_agnostic masks have no classes: choose one of the two"),
        (lambda: MaskHeadConfig(head="mlp", norm="group"), "mask.norm belongs to the convolutions of mask.head fcn; it must be none with mlp, not group"),
        (lambda: MaskHeadConfig(head="mlp", layers=0), "mask.layers must be greater than 0 with mask.head mlp"),
        (lambda: ModelConfig(tasks=("boxes", "keypoints"), keypoint=KeypointHeadConfig(classes=())),
         "model.tasks has keypoints, but model.keypoint.classes names no class that has them"),
        (lambda: ModelConfig(num_classes=2, tasks=("boxes", "keypoints"), keypoint=KeypointHeadConfig(classes=(0, 2))),
         "model.keypoint.classes must be below model.num_classes 2, not (0, 2)"),
        (lambda: ModelConfig(tasks=("masks", "keypoints")),
         "model.tasks has masks and keypoints without boxes, inside which they are predicted: add boxes"),
        (lambda: ModelConfig(backbone=BackboneConfig(norm_epsilon=0.0, pyramid_norm="group")),
         "backbone.norm_epsilon must be greater than 0 with group norm, whose variance may be 0; 0 is for frozen batch norm"),
        (lambda: Experiment(data=DataConfig(padding_divisor=16)),
         "data.padding_divisor must be 0 or a multiple of 32 with backbone.features fpn, not 16"),
        (lambda: ModelConfig(tasks=("boxes", "boxes")), "model.tasks must not repeat a task, as boxes boxes does"),
        (lambda: ModelConfig(tasks=("boxes", "depth")), "model.tasks must be one of boxes, masks, keypoints, not 'depth'"),
        (lambda: ModelConfig(tasks=(), rpn=RPNConfig(training="separate")),
         "model.tasks is empty and model.rpn.training separate, so nothing would be trained"),
        (lambda: Experiment(model=ModelConfig(rpn=RPNConfig(training="separate"))),
         "model.rpn.training is separate, so train.rpn_from must name the run directory of the trained RPN"),
        (lambda: Experiment(train=TrainConfig(rpn_from="runs/rpn")),
         "train.rpn_from is given, so model.rpn.training must be separate: a jointly trained RPN starts with the model"),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused_in_one_sentence(build, sentence):
    with pytest.raises(InputError) as error:
        build()
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    "given",
    [
        C4,
        {"backbone": BackboneConfig(features="c5"), "roi": RoIConfig(levels=(5, 5)), "rpn": RPNConfig(anchor_sizes=(32, 64))},
        {"roi": RoIConfig(levels=(2, 2))},  # one level of a pyramid
        {"tasks": ()},
        {"tasks": ("boxes", "keypoints"), "num_classes": 1},
        {"tasks": ("boxes", "keypoints"), "num_classes": 0, "keypoint": KeypointHeadConfig(num_keypoints=0, classes=())},
        {"rpn": RPNConfig(training="separate")},
    ],
)
def test_what_can_go_together_is_built(given):
    model = ModelConfig(**given)
    experiment = Experiment(model=model, train=TrainConfig(rpn_from="runs/rpn" if model.rpn.training == "separate" else ""))
    assert from_dict(to_dict(experiment)) == experiment


@pytest.mark.parametrize(
    "build, given",
    [
        (BackboneConfig, {"freeze_stages": 0}),
        (BackboneConfig, {"freeze_stages": 5}),
        (RPNConfig, {"foreground_iou": 0.5, "background_iou": 0.5}),
        (MaskHeadConfig, {"layers": 0}),
        (ModelConfig, {"num_classes": 0}),
        (DataConfig, {"short_edge": (1333,), "short_edge_test": 1333}),
        (TrainConfig, {"decay_steps": (), "warmup_steps": 0, "weight_decay": 0, "momentum": 0, "evaluate_every": 0, "seed": 0}),
        (EvaluationConfig, {"max_detections": (1, 1, 1), "picture_score": 1}),
    ],
)
def test_the_edges_of_the_rules_are_allowed(build, given):
    assert dataclasses.asdict(build(**given)).items() >= given.items()


# ---- dictionaries and files


@pytest.mark.parametrize("name", presets.PRESETS)
def test_an_experiment_survives_json(name, tmp_path):
    experiment = presets.get(name)
    values = to_dict(experiment)
    assert json.loads(json.dumps(values)) == values
    assert from_dict(values) == experiment and hash(from_dict(values)) == hash(experiment)
    (tmp_path / "experiment.json").write_text(json.dumps(values))
    assert read_experiment(tmp_path / "experiment.json") == experiment


def test_every_field_survives_json():
    """Each field in turn takes a value that is not its default. (Three cannot change alone: the tests of what goes together have them.)"""
    names = {"backbone.name": "resnet18", "backbone.norm": "group", "train.optimizer": "adamw", "train.dtype": "bfloat16", "pool.operation": "warp",
             "pool.reduction": "max", "mask.head": "mlp", "mask.loss": "softmax", "data.resize": "bilinear", "data.size_rounding": "down",
             "rpn.anchor_rounding": "corners", "rpn.anchor_strides": "grid", "rpn.loss_normalizer": "sampled", "mask.paste": "integer",
             "keypoint.score": "logit", "model.channel_order": "bgr", "train.parallel": "shard_map", "train.reduce_dtype": "bfloat16"}  # fmt: skip
    others = {
        str: lambda value, path: names.get(".".join(path[-2:]), "batch" if "norm" in path[-1] else "other"),
        bool: lambda value, path: not value,
        int: lambda value, path: {"padding_divisor": 32, "images_per_device": 4}.get(path[-1]) or (value - 1 if value > 1 else value + 1),
        float: lambda value, path: value * 0.75 + 0.001,
        tuple: lambda value, path: {"tasks": ("boxes",), "levels": (3, 4)}.get(path[-1]) or tuple(item + 1 for item in value),
    }  # fmt: skip

    def paths(part, path=()):
        for part_field in dataclasses.fields(part):
            value, here = getattr(part, part_field.name), (*path, part_field.name)
            yield from paths(value, here) if dataclasses.is_dataclass(value) else [(here, value)]

    count = 0
    for path, value in paths(Experiment()):
        if path[-1] in ("features", "training", "rpn_from"):
            continue
        other = others[type(value)](value, path)
        experiment = from_dict(changed(".".join(path), other))
        assert field(experiment, ".".join(path)) == other != value
        assert experiment != Experiment() and from_dict(to_dict(experiment)) == experiment
        count += 1
    assert count > 100


def test_what_is_absent_takes_its_default():
    assert from_dict({}) == Experiment()
    assert from_dict({"train": {"steps": 7}}) == Experiment(train=TrainConfig(steps=7))


def test_whole_numbers_serve_as_floats():
    experiment = from_dict({"train": {"learning_rate": 1}, "model": {"rpn": {"anchor_sizes": [8, 16, 32, 64, 128]}}})
    assert isinstance(experiment.train.learning_rate, float)
    assert all(isinstance(size, float) for size in experiment.model.rpn.anchor_sizes)
    assert experiment.model.rpn.anchor_sizes == (8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    "path, value, reason",
    [
        ("train.stepz", 5, "stepz @ experiment.train"),
        ("optimiser", {}, "optimiser @ experiment"),
        ("train.steps", 2.7, "must be int, not 2.7 @ experiment.train.steps"),
        ("train.steps", "5", "must be int, not '5' @ experiment.train.steps"),
        ("train.steps", True, "must be int, not True @ experiment.train.steps"),
        ("train.learning_rate", "fast", "must be float, not 'fast' @ experiment.train.learning_rate"),
        ("train.learning_rate", None, "must be float, not None @ experiment.train.learning_rate"),
        ("data.flip", "false", "must be bool, not 'false' @ experiment.data.flip"),
        ("data.flip", 1, "must be bool, not 1 @ experiment.data.flip"),
        ("data.dataset", None, "must be str, not None @ experiment.data.dataset"),
        ("data.short_edge", 800, "@ experiment.data.short_edge"),
        ("data.short_edge", [800, "900"], "must be int, not '900' @ experiment.data.short_edge[1]"),
        ("model.pixel_mean", [1, 2], "@ experiment.model.pixel_mean"),
        ("model.backbone.name", "resnet51", "'resnet152'] @ experiment.model.backbone.name"),
        ("train", 5, "@ experiment.train"),
        ("model.backbone", None, "@ experiment.model.backbone"),
        ("train.steps", -1, "train.steps must be greater than 0, not -1 @ experiment.train"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(path, value, reason):
    with pytest.raises(InputError) as error:
        from_dict(changed(path, value), "run/experiment.json")
    message = str(error.value)
    assert message.startswith("run/experiment.json does not describe an experiment of this version: ") and message.endswith(reason)
    assert "\n" not in message


def test_all_that_does_not_fit_is_named_at_once():
    with pytest.raises(InputError, match="experiment.train.steps.*experiment.data.flip|experiment.data.flip.*experiment.train.steps"):
        from_dict({"train": {"steps": "a"}, "data": {"flip": "b"}})


@pytest.mark.parametrize("value", [5, [], None, "text"])
def test_what_is_no_object_at_all_is_refused(value):
    with pytest.raises(InputError, match="^file does not describe an experiment: it must be an object"):
        from_dict(value, "file")


@pytest.mark.parametrize("content", [b"", b"{", b'{"train": {"steps": 5},}', b"\xff\xfe\x00\x01", b"\x89PNG"])
def test_malformed_files_are_named(tmp_path, content):
    path = tmp_path / "experiment.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path} is not valid JSON: .+"):
        read_experiment(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match=f"^cannot read {tmp_path / 'none.json'}: No such file or directory$"):
        read_experiment(tmp_path / "none.json")
    with pytest.raises(InputError, match=f"^cannot read {tmp_path}: Is a directory$"):
        read_experiment(tmp_path)


def test_a_file_that_does_not_fit_is_named_with_the_field(tmp_path):
    path = tmp_path / "experiment.json"
    path.write_text('{"train": {"steps": 0}}')
    with pytest.raises(InputError, match=f"^{path} does not describe .*: train.steps must be greater than 0, not 0 @ experiment.train$"):
        read_experiment(path)


# ---- experiments


def test_configurations_are_hashable_and_frozen():
    assert hash(Experiment()) == hash(Experiment())
    assert len({presets.get(name) for name in presets.PRESETS}) == len(presets.PRESETS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().train.steps = 5


@pytest.mark.parametrize("name", presets.PRESETS)
def test_experiments_know_their_names_and_say_what_they_are(name):
    assert presets.get(name).name == name
    assert presets.describe(name).endswith(".") and "\n" not in presets.describe(name)
    assert f"mrcnn train {name}" in presets.PRESETS[name].__doc__


def test_the_base_experiment_is_the_default():
    assert presets.get("mask_rcnn_r50_fpn") == Experiment(data=DataConfig(dataset="data/coco"))


def test_an_unknown_experiment_lists_those_there_are():
    with pytest.raises(InputError) as error:
        presets.get("mask_rcnn_r5")
    assert str(error.value) == f"there is no experiment 'mask_rcnn_r5'; choose from {', '.join(presets.PRESETS)}"
