"""Configuration of optimisation, checkpoints and logs."""

from dataclasses import dataclass
from typing import Literal

from mrcnn_jax.config.validation import (
    BatchSize,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_fields,
    require,
)


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation, parallelism, checkpoints and logs."""

    steps: PositiveInt = 160_000
    """Training steps."""
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
    decay_steps: tuple[PositiveInt, ...] = (120_000,)
    """Steps after which the learning rate is multiplied by decay_factor."""
    decay_factor: Fraction = 0.1
    """Factor of each learning-rate decay."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: sgd with momentum (the paper), or adamw, which learns from scratch in far fewer steps."""
    momentum: Fraction = 0.9
    """Momentum of sgd."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay of convolution and matrix kernels; biases and normalisation have none."""
    clip_norm: NonNegativeFloat = 0.0
    """Maximum global norm of the gradient; 0 does not clip (the paper)."""
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
    checkpoint_every: PositiveInt = 2000
    """Steps between checkpoints."""
    checkpoint_minutes: NonNegativeFloat = 10.0
    """Minutes after which a checkpoint is written earlier, the first one after 2; 0 counts steps alone."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations during training; 0 evaluates only at the end."""
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
        require(self.images_per_device % self.accumulate == 0,
                f"train.accumulate must divide train.images_per_device {self.images_per_device}, not "
                f"{self.accumulate}")
