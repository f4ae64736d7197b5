"""SGD with momentum, warm-up, step decay and weight decay (section 3.1 and its released code), or AdamW."""

from functools import lru_cache
from typing import NamedTuple

import jax
import optax

from mrcnn_jax.config import ModelConfig, TrainConfig
from mrcnn_jax.models.resnet import frozen_modules


class OptimizerSettings(NamedTuple):
    """The fields of ``TrainConfig`` that the optimizer depends on."""

    optimizer: str
    learning_rate: float
    reference_batch: int
    warmup_steps: int
    warmup_factor: float
    decay_steps: tuple[int, ...]
    decay_factor: float
    momentum: float
    weight_decay: float
    clip_norm: float


def scaled_learning_rate(config: TrainConfig | OptimizerSettings, images_per_step: int) -> float:
    """Scales the learning rate linearly with the images of a step over all devices (Goyal et al., 2017)."""
    return config.learning_rate * images_per_step / config.reference_batch


def make_schedule(config: TrainConfig | OptimizerSettings, images_per_step: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    It rises linearly from ``warmup_factor`` of the full rate, and is multiplied by ``decay_factor`` after
    each of ``decay_steps``.
    """
    rate = scaled_learning_rate(config, images_per_step)
    decay = optax.piecewise_constant_schedule(1.0, {step: config.decay_factor for step in config.decay_steps})
    if not config.warmup_steps:
        return lambda step: rate * decay(step)
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, config.warmup_steps)
    return lambda step: rate * warmup(step) * decay(step)


def make_optimizer(
    config: TrainConfig, model: ModelConfig, images_per_step: int
) -> optax.GradientTransformation:
    """Returns the update rule, the same object for equal settings (see ``make_train_step``).

    Weight decay applies to kernels only. Frozen stages of the backbone, and a separately trained RPN, get
    neither updates nor momentum.
    """
    settings = OptimizerSettings(*(getattr(config, name) for name in OptimizerSettings._fields))
    return _make_optimizer(settings, frozen_modules(model.backbone), images_per_step)


@lru_cache(maxsize=16)
def _make_optimizer(settings, frozen_stages, images_per_step):
    def label(path, _):
        names = [key.key for key in path]
        frozen = names[0] == "proposer" or names[0] == "backbone" and names[1].startswith(frozen_stages)
        return "frozen" if frozen else "trained"

    def is_kernel(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)

    schedule, decay = make_schedule(settings, images_per_step), settings.weight_decay
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    if settings.optimizer == "sgd":
        sgd = optax.sgd(schedule, momentum=settings.momentum)
        trained = optax.chain(clip, optax.add_decayed_weights(decay, mask=is_kernel), sgd)
    else:
        trained = optax.chain(clip, optax.adamw(schedule, weight_decay=decay, mask=is_kernel))
    return optax.multi_transform(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
