"""Rescaling of schedules to another number of steps."""

from collections.abc import Set
from dataclasses import replace

from mrcnn_jax.config.train import TrainConfig


def scale_schedule(config: TrainConfig, steps_before: int, given: Set[str]) -> TrainConfig:
    """Moves the decays of a schedule to the same fractions of another number of steps.

    The warm-up is shortened to a fifth of the steps if it is longer.

    Args:
        config: the schedule with its new number of steps.
        steps_before: the number of steps that the other fields are for.
        given: dotted names of the fields that the user gives, which stay as they are.
    """
    decays = {max(1, round(step * config.steps / steps_before)) for step in config.decay_steps}
    scaled = {
        "decay_steps": tuple(sorted(decays)), "warmup_steps": min(config.warmup_steps, config.steps // 5)
    }  # fmt: skip
    return replace(config, **{name: value for name, value in scaled.items() if f"train.{name}" not in given})


def with_epochs(
    config: TrainConfig, images: int, images_per_step: int, step: int = 0, images_seen: int = 0
) -> TrainConfig:
    """Converts ``epochs``, if set, to ``steps``, rescales the schedule, and returns it without ``epochs``.

    Args:
        config: the schedule.
        images: number of training images.
        images_per_step: over all devices.
        step: number of steps that a resumed run has done, perhaps on another number of devices.
        images_seen: by these steps.
    """
    if not config.epochs:
        return config
    steps = max(1, step + round((config.epochs * images - images_seen) / images_per_step))
    return scale_schedule(replace(config, steps=steps, epochs=0.0), config.steps, set())
