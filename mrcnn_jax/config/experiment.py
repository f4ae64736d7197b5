"""What is trained on, how, how it is scored; and all of it together."""

from dataclasses import dataclass, field
from typing import Literal

from mrcnn_jax.config.checks import choices, fraction, natural, positive, require
from mrcnn_jax.config.model import ModelConfig


@dataclass(frozen=True)
class DataConfig:
    """A prepared data set and how its images are sized."""

    dataset: str = "shapes"
    """"shapes" or "puppets", which are made on first use, or the folder that `mrcnn dataset` wrote."""
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
    resize: Literal["area", "antialiased", "bilinear"] = "area"
    """area: averages when it shrinks (OpenCV); antialiased: Pillow's bilinear (Detectron2); bilinear: plain, not rounded to whole levels (torchvision)."""
    size_rounding: Literal["nearest", "down"] = "nearest"
    """Of the resized height and width: nearest is Detectron2's rule, down torchvision's."""
    padding_divisor: int = 0
    """At inference: 0 pads images to two fixed sizes, one for landscape and one for portrait; n pads each to the next multiples of n, as the libraries do
    (32; 1 without a pyramid), which is exact where weights are theirs but compiles once for every size met. Training always has the two sizes."""
    threads: int = 8
    unreadable: int = 10
    """Training images that cannot be read and are replaced by others, with a warning, before the run halts; 0 halts at the first."""

    def __post_init__(self):
        choices("data", self)
        natural("data", padding_divisor=self.padding_divisor, unreadable=self.unreadable)
        require(bool(self.short_edge) and min(self.short_edge) > 0, f"data.short_edge must be greater than 0, not {self.short_edge}")
        longest = max(*self.short_edge, self.short_edge_test)
        require(self.long_edge >= longest, f"data.long_edge must be at least the shorter edge {longest}, not {self.long_edge}")
        positive("data", short_edge_test=self.short_edge_test, max_objects=self.max_objects, mask_size=self.mask_size, threads=self.threads)


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
    max_loss: float = 1000.0
    """A step with a larger loss, or with one that is not finite, has failed: nothing is learned from it."""
    bad_steps: int = 0
    """So many failed steps of a run are left out, each with a warning, before it halts; 0 halts at the first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are always float32."""
    parallel: Literal["pmap", "shard_map"] = "pmap"
    """What spreads the step over the devices; the results are the same."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the gradients while they are added up over the devices; bfloat16 halves what travels."""
    accumulate: int = 1
    """A device goes through its images of a step in so many parts, one after the other, and averages their gradients: less memory, the same batch. Each part's losses
    are normalised by its own counts over all devices."""
    remat: bool = False
    """Compute the backbone's blocks once more in the backward pass instead of remembering what is inside them: less memory, about a third more computation."""
    weights_from: str = ""
    """Directory of imported weights, or of another run, that the model starts from; layers made for other classes start at random."""
    rpn_from: str = ""
    """Run directory whose backbone and RPN make the proposals, where model.rpn.training is separate."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 2000
    keep_checkpoints: int = 2
    evaluate_every: int = 0
    """Steps between evaluations while training; 0 evaluates at the end only."""
    stall_seconds: int = 1800
    """Without any progress for so long, in reading, training, saving or evaluating, the process says where it hangs and ends, to be started again; 0 waits forever."""
    compilation_cache: str = "~/.cache/mrcnn_jax"
    """Where compiled programs are kept for the next start; on a pod a directory that all hosts see, such as gs://bucket/compiled; "" keeps none."""

    def __post_init__(self):
        choices("train", self)
        positive("train", steps=self.steps, images_per_device=self.images_per_device, learning_rate=self.learning_rate,
                  reference_batch=self.reference_batch, log_every=self.log_every, checkpoint_every=self.checkpoint_every,
                  keep_checkpoints=self.keep_checkpoints, max_loss=self.max_loss, accumulate=self.accumulate)  # fmt: skip
        fraction("train", warmup_factor=self.warmup_factor, decay_factor=self.decay_factor, momentum=self.momentum)
        require(list(self.decay_steps) == sorted(set(self.decay_steps)), f"train.decay_steps must increase, not {self.decay_steps}")
        natural("train", warmup_steps=self.warmup_steps, weight_decay=self.weight_decay, clip_norm=self.clip_norm,
                evaluate_every=self.evaluate_every, seed=self.seed, bad_steps=self.bad_steps, stall_seconds=self.stall_seconds)  # fmt: skip
        require(self.images_per_device % self.accumulate == 0,
                f"train.accumulate must divide train.images_per_device {self.images_per_device}, not {self.accumulate}")  # fmt: skip


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
        positive("evaluation", images_per_device=self.images_per_device, pictures=self.pictures)
        require(list(self.max_detections) == sorted(self.max_detections) and self.max_detections[0] > 0,
                f"evaluation.max_detections must increase from at least 1, not {self.max_detections}")  # fmt: skip
        fraction("evaluation", picture_score=self.picture_score)


@dataclass(frozen=True)
class Experiment:
    """One run: what is trained, on what, how, and how it is scored."""

    name: str = "mask_rcnn_r50_fpn"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self):
        pyramid, divisor = self.model.backbone.features == "fpn", self.data.padding_divisor
        require(not pyramid or divisor % 32 == 0, f"data.padding_divisor must be 0 or a multiple of 32 with backbone.features fpn, not {divisor}")
        separate, given = self.model.rpn.training == "separate", bool(self.train.rpn_from)
        require(given or not separate, "model.rpn.training is separate, so train.rpn_from must name the run directory of the trained RPN")
        require(separate or not given, "train.rpn_from is given, so model.rpn.training must be separate: a jointly trained RPN starts with the model")
