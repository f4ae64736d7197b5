"""An experiment as data: frozen dataclasses, validated where they are built.

The defaults are Mask R-CNN with ResNet-50-FPN on COCO as the paper trains it (section 3.1 and the released code), with two deliberate
deviations, each a field: RoIAlign reads features at half-pixel centres (``roi.aligned``), and proposals are kept per image rather than per
batch. Every other published system is a small ``dataclasses.replace`` of this one.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import cattrs

from mrcnn_jax.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raises InputError(message) unless the condition holds."""
    if not condition:
        raise InputError(message)


def _positive(owner: str, **values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{owner}.{name} must be greater than 0, not {value}")


def _fraction(owner: str, **values: float) -> None:
    for name, value in values.items():
        require(0 <= value <= 1, f"{owner}.{name} must lie between 0 and 1, not {value}")


def _choices(owner: str, config: Any) -> None:
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            value, allowed = getattr(config, name), get_args(kind)
            require(value in allowed, f"{owner}.{name} must be one of {', '.join(allowed)}, not {value!r}")


@dataclass(frozen=True)
class BackboneConfig:
    """ResNet and feature pyramid."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    width: int = 64
    """Channels of the stem; 64 is the published network, less is a narrow one for small machines."""
    norm: Literal["frozen", "batch", "group"] = "frozen"
    """frozen: affine batch norm that never changes (needs pretrained weights); batch: over all devices; group: 32 groups."""
    norm_epsilon: float = 1e-5
    freeze_stages: int = 2
    """How many stages keep their weights: 0 none, 1 the stem, 2 the stem and res2 (the paper), up to 5."""
    stride_in_1x1: bool = True
    """Bottlenecks reduce the resolution in the first 1x1 convolution (the paper's MSRA weights) or in the 3x3 (torchvision's)."""
    pyramid_channels: int = 256
    pyramid_norm: Literal["none", "batch", "group"] = "none"

    def __post_init__(self):
        _choices("backbone", self)
        _positive("backbone", width=self.width, pyramid_channels=self.pyramid_channels, norm_epsilon=self.norm_epsilon)
        require(0 <= self.freeze_stages <= 5, f"backbone.freeze_stages must be 0 to 5, not {self.freeze_stages}")


@dataclass(frozen=True)
class RPNConfig:
    """Region proposal network: anchors, how they are matched and sampled, how proposals are chosen."""

    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    """Side in pixels of the square anchor of each level, P2 to P6."""
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width."""
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    samples_per_image: int = 256
    positive_fraction: float = 0.5
    smooth_l1_beta: float = 1 / 9
    pre_nms_train: int = 2000
    """Best anchors of each level that enter NMS."""
    pre_nms_test: int = 1000
    post_nms_train: int = 2000
    """Proposals of an image, over all levels."""
    post_nms_test: int = 1000
    nms_iou: float = 0.7

    def __post_init__(self):
        require(len(self.anchor_sizes) == 5, f"rpn.anchor_sizes needs one size for each of the 5 levels, not {len(self.anchor_sizes)}")
        require(min(self.anchor_sizes) > 0, f"rpn.anchor_sizes must be greater than 0, not {self.anchor_sizes}")
        require(bool(self.aspect_ratios) and min(self.aspect_ratios) > 0, f"rpn.aspect_ratios must be greater than 0, not {self.aspect_ratios}")
        _fraction("rpn", foreground_iou=self.foreground_iou, background_iou=self.background_iou, nms_iou=self.nms_iou,
                  positive_fraction=self.positive_fraction)  # fmt: skip
        require(self.background_iou <= self.foreground_iou, "rpn.background_iou must not exceed rpn.foreground_iou")
        _positive("rpn", samples_per_image=self.samples_per_image, pre_nms_train=self.pre_nms_train, pre_nms_test=self.pre_nms_test,
                  post_nms_train=self.post_nms_train, post_nms_test=self.post_nms_test)  # fmt: skip


@dataclass(frozen=True)
class RoIConfig:
    """RoIAlign over the pyramid, and how training RoIs are sampled."""

    sampling_ratio: int = 2
    """Bilinear samples per bin and axis: 2 gives the paper's four."""
    aligned: bool = True
    """Subtract half a pixel, so that features are read where they are; False is the released code's reading."""
    canonical_size: float = 224.0
    """A box of this side is read from canonical_level (FPN, equation 1)."""
    canonical_level: int = 4
    samples_per_image: int = 512
    positive_fraction: float = 0.25
    foreground_iou: float = 0.5

    def __post_init__(self):
        _positive("roi", sampling_ratio=self.sampling_ratio, canonical_size=self.canonical_size, samples_per_image=self.samples_per_image)
        require(2 <= self.canonical_level <= 5, f"roi.canonical_level must be 2 to 5, not {self.canonical_level}")
        _fraction("roi", positive_fraction=self.positive_fraction, foreground_iou=self.foreground_iou)


@dataclass(frozen=True)
class BoxHeadConfig:
    """Two fully connected layers, then class scores and class-specific box deltas."""

    pool_size: int = 7
    channels: int = 1024
    delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    smooth_l1_beta: float = 1.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    candidates: int = 2000
    """Best (box, class) pairs of an image that enter NMS."""
    detections: int = 100
    """Detections kept for an image."""

    def __post_init__(self):
        _positive("box", pool_size=self.pool_size, channels=self.channels, candidates=self.candidates, detections=self.detections)
        require(min(self.delta_weights) > 0, f"box.delta_weights must be greater than 0, not {self.delta_weights}")
        _fraction("box", score_threshold=self.score_threshold, nms_iou=self.nms_iou)


@dataclass(frozen=True)
class MaskHeadConfig:
    """Fully convolutional mask branch: one mask per class, twice the resolution of its RoI features."""

    pool_size: int = 14
    convolutions: int = 4
    channels: int = 256
    norm: Literal["none", "batch", "group"] = "none"

    def __post_init__(self):
        _choices("mask", self)
        _positive("mask", pool_size=self.pool_size, channels=self.channels)
        require(self.convolutions >= 0, f"mask.convolutions must not be negative, not {self.convolutions}")


@dataclass(frozen=True)
class ModelConfig:
    """The detector."""

    num_classes: int = 80
    """Foreground classes; 0 takes the number from the data set."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    rpn: RPNConfig = field(default_factory=RPNConfig)
    roi: RoIConfig = field(default_factory=RoIConfig)
    box: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB, 0 to 255."""
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        require(self.num_classes >= 0, f"model.num_classes must not be negative, not {self.num_classes}")
        require(min(self.pixel_std) > 0, f"model.pixel_std must be greater than 0, not {self.pixel_std}")


@dataclass(frozen=True)
class DataConfig:
    """A prepared data set and how its images are sized."""

    dataset: str = "shapes"
    """"shapes" (made on first use) or the folder that `mrcnn dataset` wrote."""
    train_split: str = "train"
    validation_split: str = "validation"
    short_edge: tuple[int, ...] = (800,)
    """Length of the shorter edge in training; of several, one is drawn for each image."""
    short_edge_test: int = 800
    long_edge: int = 1333
    """The longer edge is never longer than this; the shorter one gives way."""
    max_objects: int = 100
    """Object slots of an image; of a training image with more objects the largest are kept."""
    mask_size: int = 112
    """Side of the masks given to training, each cropped to its object's box."""
    flip: bool = True
    """Mirror half of the training images."""
    threads: int = 8

    def __post_init__(self):
        require(bool(self.short_edge) and min(self.short_edge) > 0, f"data.short_edge must be greater than 0, not {self.short_edge}")
        longest = max(*self.short_edge, self.short_edge_test)
        require(self.long_edge >= longest, f"data.long_edge must be at least the shorter edge {longest}, not {self.long_edge}")
        _positive("data", short_edge_test=self.short_edge_test, max_objects=self.max_objects, mask_size=self.mask_size, threads=self.threads)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, checkpoints and logs."""

    steps: int = 160_000
    images_per_device: int = 2
    learning_rate: float = 0.02
    """For reference_batch images a step; scaled linearly to the batch that the devices make."""
    reference_batch: int = 16
    warmup_steps: int = 500
    warmup_factor: float = 1 / 3
    decay_steps: tuple[int, ...] = (120_000,)
    decay_factor: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: with momentum, the paper's; adamw: far quicker from scratch when there are minutes and not days."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """Of convolution and matrix weights; not of biases and normalisation."""
    clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 leaves it alone (the paper)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are always float32."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 2000
    keep_checkpoints: int = 2
    evaluate_every: int = 0
    """Steps between evaluations while training; 0 evaluates at the end only."""

    def __post_init__(self):
        _choices("train", self)
        _positive("train", steps=self.steps, images_per_device=self.images_per_device, learning_rate=self.learning_rate,
                  reference_batch=self.reference_batch, log_every=self.log_every, checkpoint_every=self.checkpoint_every,
                  keep_checkpoints=self.keep_checkpoints)  # fmt: skip
        _fraction("train", warmup_factor=self.warmup_factor, decay_factor=self.decay_factor, momentum=self.momentum)
        require(list(self.decay_steps) == sorted(set(self.decay_steps)), f"train.decay_steps must increase, not {self.decay_steps}")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "evaluate_every", "seed"):
            require(getattr(self, name) >= 0, f"train.{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True)
class EvaluationConfig:
    """How detections are scored."""

    images_per_device: int = 1
    max_detections: tuple[int, int, int] = (1, 10, 100)
    """Detections of an image that COCO's recall figures count; AP is at the last."""
    pictures: int = 16
    """Images of the contact sheet."""
    picture_score: float = 0.5
    """Detections below this score are not drawn."""

    def __post_init__(self):
        _positive("evaluation", images_per_device=self.images_per_device, pictures=self.pictures)
        require(list(self.max_detections) == sorted(self.max_detections) and self.max_detections[0] > 0,
                f"evaluation.max_detections must increase from at least 1, not {self.max_detections}")  # fmt: skip
        _fraction("evaluation", picture_score=self.picture_score)


@dataclass(frozen=True)
class Experiment:
    """One run: what is trained, on what, how, and how it is scored."""

    name: str = "mask_rcnn_r50_fpn"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def _exactly(value: Any, kind: type) -> Any:
    """The value, if JSON gave it that type; left alone, cattrs would read 2.7 as 2 and "false" as True."""
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    require(fits, f"must be {kind.__name__}, not {value!r}")
    return kind(value)


_converter = cattrs.Converter(forbid_extra_keys=True)
for _kind in (int, float, bool, str):
    _converter.register_structure_hook(_kind, _exactly)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The experiment as plain JSON-ready containers."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(values: dict[str, Any], origin: str = "experiment") -> Experiment:
    """The experiment that to_dict wrote. Raises InputError, naming the origin and the fields, where it does not fit."""
    def reason(error: BaseException, kind: type | None) -> str:
        return cattrs.v.format_exception(error, kind) if isinstance(error, TypeError) else str(error)

    require(isinstance(values, dict), f"{origin} does not describe an experiment: it must be an object with named fields, not {values!r:.50}")
    try:
        return _converter.structure(values, Experiment)
    except cattrs.BaseValidationError as error:
        reasons = "; ".join(cattrs.transform_error(error, "experiment", reason))
        raise InputError(f"{origin} does not describe an experiment of this version: {reasons}") from error


def read_experiment(path: str | Path) -> Experiment:
    """Reads an experiment.json."""
    try:
        values = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    return from_dict(values, str(path))
