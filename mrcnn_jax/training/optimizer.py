"""SGD with momentum, warm-up, step decay and weight decay (section 3.1 and its released code), AdamW or Muon.

Other schedules, and rates and a freeze of the backbone of its own, by fields of ``TrainConfig``.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.config import ModelConfig, TrainConfig
from mrcnn_jax.models.resnet import frozen_modules
from mrcnn_jax.training.muon import scale_by_muon


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
    schedule: str
    layer_decay: float
    freeze_backbone_steps: int


ONE_CYCLE_RISE = 0.3
"""Fraction of the steps in which the rate of ``one_cycle`` rises."""
_STAGES = ("stem", "res2", "res3", "res4", "res5")


def scaled_learning_rate(config: TrainConfig | OptimizerSettings, images_per_step: int) -> float:
    """Scales the learning rate linearly with the images of a step over all devices (Goyal et al., 2017)."""
    return config.learning_rate * images_per_step / config.reference_batch


def make_schedule(config: TrainConfig, images_per_step: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    It rises linearly from ``warmup_factor`` of the full rate. With the schedule "step" it is multiplied by
    ``decay_factor`` after each of ``decay_steps``, with "cosine" by half a period of a cosine over all steps;
    "one_cycle" is optax's cosine cycle.
    """
    return _make_schedule(config, images_per_step, config.steps)


def _make_schedule(config, images_per_step, steps):
    rate = scaled_learning_rate(config, images_per_step)
    if config.schedule == "one_cycle":
        return optax.cosine_onecycle_schedule(steps, rate, ONE_CYCLE_RISE)
    if config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(1.0, steps)
    else:
        factors = {step: config.decay_factor for step in config.decay_steps}
        decay = optax.piecewise_constant_schedule(1.0, factors)
    if not config.warmup_steps:
        return lambda step: rate * decay(step)
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, config.warmup_steps)
    return lambda step: rate * warmup(step) * decay(step)


def make_optimizer(
    config: TrainConfig, model: ModelConfig, images_per_step: int
) -> optax.GradientTransformation:
    """Returns the update rule, the same object for equal settings (see ``make_train_step``).

    Weight decay applies to kernels only. Frozen stages of the backbone, and a separately trained RPN, get
    neither updates nor momentum; the first layer of FCIS's score maps learns faster than the rest.
    """
    factor = model.fcis.rate_factor if model.system == "fcis" else 1.0
    settings = OptimizerSettings(*(getattr(config, name) for name in OptimizerSettings._fields))
    steps = 0 if config.schedule == "step" else config.steps  # on which "step" does not depend
    return _make_optimizer(settings, frozen_modules(model.backbone), images_per_step, steps, factor)


def is_frozen(path: Sequence[str], frozen_stages: tuple[str, ...]) -> bool:
    """Returns whether a parameter is not trained.

    Args:
        path: its names, "backbone", "res2_block1", ...
        frozen_stages: from ``frozen_modules``.
    """
    return path[0] == "proposer" or path[0] == "backbone" and path[1].startswith(frozen_stages)


@lru_cache(maxsize=16)
def _make_optimizer(settings, frozen_stages, images_per_step, steps, neck_factor):
    def label(path, _):
        return "frozen" if is_frozen([key.key for key in path], frozen_stages) else "trained"

    def is_kernel(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)

    def is_neck(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-2].key == "neck", params)

    schedule, decay = _make_schedule(settings, images_per_step, steps), settings.weight_decay
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    if settings.optimizer == "sgd":
        sgd = optax.sgd(schedule, momentum=settings.momentum)
        trained = optax.chain(clip, optax.add_decayed_weights(decay, mask=is_kernel), sgd)
    elif settings.optimizer == "adamw":
        trained = optax.chain(clip, optax.adamw(schedule, weight_decay=decay, mask=is_kernel))
    else:
        decayed = optax.add_decayed_weights(decay, mask=is_kernel)
        trained = optax.chain(clip, scale_by_muon(), decayed, optax.scale_by_learning_rate(schedule))
    # always, so that a run may be resumed with other values
    trained = optax.chain(trained, _scale_backbone(settings.layer_decay, settings.freeze_backbone_steps))
    if neck_factor != 1:
        trained = optax.chain(trained, optax.masked(optax.scale(neck_factor), is_neck))
    return optax.multi_transform(
        {"trained": trained, "frozen": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )


def _scale_backbone(layer_decay: float, frozen_steps: int) -> optax.GradientTransformation:
    """Scales the updates of the backbone by a factor for each stage, 0 in the first steps."""

    def update(updates, step, params=None):
        def depth(path):
            """Returns the place of a parameter's stage; None outside of the backbone."""
            names = [key.key for key in path]
            places = (place for place, stage in enumerate(_STAGES) if names[1].startswith(stage))
            return next(places) if names[0] == "backbone" else None

        def scale(path, leaf):
            if (place := depth(path)) is None:
                return leaf
            return jnp.where(step < frozen_steps, 0, layer_decay ** (last + 1 - place) * leaf)

        if layer_decay == 1 and not frozen_steps:
            return updates, step + 1
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
        last = max((place for path in paths if (place := depth(path)) is not None), default=0)
        return jax.tree_util.tree_map_with_path(scale, updates), step + 1

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
