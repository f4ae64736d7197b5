"""SGD with momentum, linear warm-up, step decay and weight decay, as in the paper (section 3.1) and its released code; or AdamW."""

import jax
import optax

from mrcnn_jax.config import ModelConfig, TrainConfig
from mrcnn_jax.models.resnet import frozen_modules


def scaled_learning_rate(config: TrainConfig, images_per_step: int) -> float:
    """The linear scaling rule: proportional to the images of a step, over all devices (Goyal et al., 2017)."""
    return config.learning_rate * images_per_step / config.reference_batch


def make_schedule(config: TrainConfig, images_per_step: int) -> optax.Schedule:
    """Learning rate by step: from warmup_factor of the full rate, linearly, then times decay_factor from each of decay_steps on."""
    rate = scaled_learning_rate(config, images_per_step)
    decay = optax.piecewise_constant_schedule(1.0, {step: config.decay_factor for step in config.decay_steps})
    warmup = optax.linear_schedule(config.warmup_factor, 1.0, config.warmup_steps) if config.warmup_steps else lambda step: 1.0
    return lambda step: rate * warmup(step) * decay(step)


def make_optimizer(config: TrainConfig, model: ModelConfig, images_per_step: int) -> optax.GradientTransformation:
    """The update rule. Weight decay reaches kernels only; frozen stages of the backbone, and a separately trained RPN, get
    neither updates nor momentum."""

    def label(path, _):
        names = [key.key for key in path]
        frozen = names[0] == "proposer" or names[0] == "backbone" and names[1].startswith(frozen_modules(model.backbone))
        return "frozen" if frozen else "trained"

    def is_kernel(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key.endswith("kernel"), params)

    schedule, clip = make_schedule(config, images_per_step), optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.optimizer == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay, mask=is_kernel)
        trained = optax.chain(clip, decay, optax.sgd(schedule, momentum=config.momentum))
    else:
        trained = optax.chain(clip, optax.adamw(schedule, weight_decay=config.weight_decay, mask=is_kernel))
    return optax.multi_transform(
        {"trained": trained, "frozen": optax.set_to_zero()}, lambda params: jax.tree_util.tree_map_with_path(label, params)
    )
