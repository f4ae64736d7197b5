"""Configuration of optimisation, checkpoints and logs."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mrcnn_jax.config.validation import (
    BELOW_ONE,
    BatchSize,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    check_fields,
    require,
)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, parallelism, checkpoints and logs."""

    steps: PositiveInt = 160_000
    """Training steps."""
    epochs: NonNegativeFloat = 0.0
    """Passes over the training images, instead of steps; decays move with it. 0 counts steps. The
    experiment.json of a run has the steps that they made."""
    images_per_device: BatchSize = 2
    """Images per device and step."""
    learning_rate: PositiveFloat = 0.02
    """Learning rate for reference_batch images per step; scaled linearly to the actual batch size."""
    reference_batch: PositiveInt = 16
    """Batch size for which learning_rate is given."""
    warmup_steps: NonNegativeInt = 500
    """Steps of linear warm-up."""
    warmup_factor: Fraction = 1 / 3
    """Fraction of the learning rate at which warm-up begins."""
    schedule: Literal["step", "cosine", "one_cycle"] = "step"
    """Learning rate after the warm-up: step decays by decay_factor at decay_steps (the paper), cosine falls
    to 0 at the last step, one_cycle rises for 30% of the steps, with no other warm-up, and falls to 0."""
    decay_steps: tuple[PositiveInt, ...] = (120_000,)
    """Steps after which the learning rate is multiplied by decay_factor."""
    decay_factor: Fraction = 0.1
    """Factor of each learning-rate decay."""
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """Optimizer: sgd with momentum (the paper), adamw, which learns from scratch in far fewer steps, or muon,
    adamw with orthogonal updates of the hidden layers, which takes fewer still."""
    momentum: Fraction = 0.9
    """Momentum of sgd."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of convolution and matrix kernels; biases and normalisation have none."""
    clip_norm: NonNegativeFloat = 0.0
    """Maximum global norm of the gradient; 0 does not clip (the paper)."""
    layer_decay: PositiveFraction = 1.0
    """Factor of the learning rate from each stage of the backbone to the one before it: its last stage (res4
    with features c4) learns at layer_decay times the heads' rate, the one before at its square, and so on."""
    freeze_backbone_steps: NonNegativeInt = 0
    """First steps in which the backbone's parameters do not change, and the heads alone learn."""
    ema_decay: Annotated[Fraction, BELOW_ONE] = 0.0
    """Decay of an exponential moving average of the parameters, which is evaluated, loaded and exported in
    place of them, such as 0.999; it is smaller in the first steps. 0 keeps none."""
    max_loss: PositiveFloat = 1000.0
    """A step with a larger or non-finite loss, or a non-finite gradient, is skipped: it changes no
    parameter."""
    max_skipped_steps: NonNegativeInt = 0
    """Skipped steps of a run, each with a warning, before the run stops."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the computation; parameters are always float32."""
    parallel: Literal["pmap", "shard_map"] = "pmap"
    """Transformation that maps the step over devices; both give the same results."""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which gradients are summed over devices; bfloat16 halves the communication."""
    accumulate: PositiveInt = 1
    """Gradient accumulation: a device processes its images in this many parts and averages their gradients.
    Less memory, the same batch; the losses of a part are normalised by that part's counts over all
    devices."""
    remat: bool = False
    """Recompute the backbone's blocks in the backward pass: less memory, about a third more computation."""
    init_from: str = ""
    """Directory of imported weights or of another run to start from; layers of other classes are initialised
    randomly."""
    seed: NonNegativeInt = 0
    """Seed of initialisation, data order, augmentation and sampling."""
    log_every: PositiveInt = 20
    """Steps between log entries."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Loggers of metrics and pictures, beside history.jsonl and metrics.csv: tensorboard/ of the run,
    Weights & Biases (extra mrcnn_jax[wandb]), MLflow (extra mrcnn_jax[mlflow])."""
    checkpoint_every: PositiveInt = 2000
    """Steps between checkpoints."""
    checkpoint_minutes: NonNegativeFloat = 10.0
    """Minutes after which a checkpoint is written earlier, the first one after 2; 0 counts steps alone."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations during training; 0 evaluates only at the end."""
    validation_loss_images: NonNegativeInt = 0
    """Validation images, spread evenly over the split, of which each evaluation computes the training losses
    too; 0 computes none."""
    keep_best: bool = False
    """Keep the checkpoint of the best evaluation in best/, which is evaluated in the end, loaded and
    exported; needs evaluate_every."""
    patience: NonNegativeInt = 0
    """Evaluations in a row without a better one after which training ends; 0 trains all steps."""
    monitor: Literal["ap", "validation_loss"] = "ap"
    """Measure by which keep_best and patience compare evaluations: the mean AP of boxes, masks and keypoints,
    or the validation loss."""
    stall_seconds: NonNegativeInt = 1800
    """Seconds without progress in loading, training, saving or evaluating after which the process reports
    where it hangs and exits, to be restarted; 0 waits forever."""
    compilation_cache: str = "~/.cache/mrcnn_jax"
    """Directory of compiled programs, reused at the next start; on a pod a directory that all hosts see, such
    as gs://bucket/compiled; "" keeps none."""

    def __post_init__(self):
        check_fields("train", self)
        increasing = list(self.decay_steps) == sorted(set(self.decay_steps))
        require(increasing, f"train.decay_steps must increase, not {self.decay_steps}")
        for name in ("keep_best", "patience"):
            require(not getattr(self, name) or self.evaluate_every > 0,
                    f"train.{name} compares evaluations during training: set train.evaluate_every")
        require(self.monitor == "ap" or self.validation_loss_images > 0,
                "train.monitor validation_loss needs train.validation_loss_images")
        require(self.images_per_device % self.accumulate == 0,
                f"train.accumulate must divide train.images_per_device {self.images_per_device}, not "
                f"{self.accumulate}")
