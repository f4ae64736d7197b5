"""One training step: gradient, sum over devices, update; and the one place that maps it over the devices."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from mrcnn_jax.config import Experiment
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models.two_stage import TwoStage
from mrcnn_jax.structures import Batch, TrainState
from mrcnn_jax.training.losses import Metrics, batch_losses
from mrcnn_jax.training.sharding import REPLICATED, SHARDED, device_mesh


class StepSettings(NamedTuple):
    """The fields of ``TrainConfig`` that the step depends on, beside model and optimizer."""

    seed: int
    accumulate: int
    max_loss: float
    reduce_dtype: str
    parallel: str
    ema_decay: float


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def create_state(
    variables: dict[str, Any], optimizer: optax.GradientTransformation, average: bool = False
) -> TrainState:
    """Returns the state before the first step; ``average``: with a moving average of the parameters."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={name: value for name, value in variables.items() if name != "params"},
        opt_state=optimizer.init(params),
        failures=jnp.zeros((), jnp.int32),
        averaged=jax.tree.map(jnp.copy, params) if average else None,
    )


def make_train_step(
    model: TwoStage, optimizer: optax.GradientTransformation, experiment: Experiment,
    devices: Sequence[jax.Device] | None = None,
) -> Step:  # fmt: skip
    """Maps the step over all devices, or those given.

    Equal arguments get the same function, so that a second run in a process does not compile again. The key
    is the model (configuration, dtype, remat), the optimizer (``make_optimizer`` returns the same one for
    equal settings and images per step), ``StepSettings`` and the devices.

    Returns:
        (state, batch) -> (state, metrics). The state is replicated and donated; leaves of the batch have a
        leading axis of devices (``training.sharding``).
    """
    settings = StepSettings(*(getattr(experiment.train, name) for name in StepSettings._fields))
    return _mapped_step(model, optimizer, settings, None if devices is None else tuple(devices))


@lru_cache(maxsize=16)
def _mapped_step(model, optimizer, settings, devices):
    step = make_device_step(model, optimizer, settings)
    if settings.parallel == "pmap":
        return jax.pmap(
            step, axis_name=DEVICE_AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices
        )
    mesh = device_mesh(devices)

    def shard_step(state, batch):
        return step(state, jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), batch))

    # check_vma would make JAX sum the gradients by itself
    mapped = jax.shard_map(
        shard_step, mesh=mesh, in_specs=(REPLICATED, SHARDED), out_specs=REPLICATED, check_vma=False
    )
    replicated, sharded = NamedSharding(mesh, REPLICATED), NamedSharding(mesh, SHARDED)
    return jax.jit(mapped, in_shardings=(replicated, sharded), out_shardings=replicated, donate_argnums=0)


def make_device_step(
    model: TwoStage, optimizer: optax.GradientTransformation, settings: StepSettings
) -> Step:
    """Makes the step of one device, which knows the others only by the name of their axis.

    Gradients are summed over devices once, all together with the metrics. A step whose loss exceeds
    ``max_loss`` or is not finite, or whose gradient is not finite, is skipped: it changes neither parameters
    nor running statistics, the state counts it, and the metric "failed" is 1.
    """

    def loss(params, model_state, batch, keys):
        variables = {"params": params, **model_state}
        terms, updated = nn.apply(batch_losses, model, mutable=["batch_stats"])(variables, batch, keys)
        return terms["loss"], (terms, {**model_state, **updated})

    def gradients(params, model_state, batch, keys):
        gradient, (metrics, model_state) = jax.grad(loss, has_aux=True)(params, model_state, batch, keys)
        return model_state, (gradient, metrics)

    compute = gradients if settings.accumulate == 1 else _accumulated(gradients, settings.accumulate)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = _image_keys(settings.seed, state.step, batch.images.shape[0])
        model_state, computed = compute(state.params, state.model_state, batch, keys)
        gradient, metrics = _mean_over_devices(*computed, settings.reduce_dtype)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        # a comparison with NaN is false
        good = jnp.isfinite(metrics["gradient_norm"]) & (metrics["loss"] <= settings.max_loss)
        metrics["failed"] = 1.0 - good

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params, averaged = optax.apply_updates(state.params, updates), None
        if settings.ema_decay:
            decay = jnp.minimum(settings.ema_decay, (1 + state.step) / (10 + state.step))
            averaged = optax.incremental_update(params, state.averaged, 1 - decay)
        new = replace(state, params=params, model_state=model_state, opt_state=opt_state, averaged=averaged)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
        return replace(kept, step=state.step + 1, failures=state.failures + 1 - good), metrics

    return step


def _image_keys(seed, step, images):
    """Returns a random key for each image of this device, by its place in the global batch."""
    first = jax.lax.axis_index(DEVICE_AXIS) * images
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda index: jax.random.fold_in(key, first + index))(jnp.arange(images))


def _mean_over_devices(gradient, metrics, dtype):
    sent = jax.tree.map(lambda leaf: leaf.astype(dtype), gradient)
    (gradient, metrics), devices = jax.lax.psum(((sent, metrics), 1), DEVICE_AXIS)
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / devices, (gradient, metrics))


def _accumulated(gradients, parts):
    """Averages gradients and metrics over equal parts of the batch, one after another."""

    def compute(params, model_state, batch, keys):
        images = len(keys) // parts
        split = jax.tree.map(lambda leaf: leaf.reshape(parts, images, *leaf.shape[1:]), (batch, keys))

        def add(carry, part):
            model_state, total = carry
            model_state, computed = gradients(params, model_state, *part)
            return (model_state, jax.tree.map(jnp.add, total, computed)), None

        first = jax.tree.map(lambda leaf: leaf[0], split)
        shapes = jax.eval_shape(gradients, params, model_state, *first)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (model_state, total), _ = jax.lax.scan(add, (model_state, zeros), split)
        return model_state, jax.tree.map(lambda leaf: leaf / parts, total)

    return compute
