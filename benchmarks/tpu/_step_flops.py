"""FLOPs of a training step's convolutions and matrix products on one device, every iteration of its loops
counted."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.model._synthetic import make_step, synthetic_batch
from benchmarks.roi._workloads import Workload
from benchmarks.tpu._product_flops import product_flops, static_flops
from mrcnn_jax import ops
from mrcnn_jax.config import Experiment
from mrcnn_jax.config.model import ROI_LEVELS, STRIDES, RoIPooling
from mrcnn_jax.models.systems import make_model
from mrcnn_jax.runtime import compiling_for

SIZES = (16, 800)
"""Range of the square root of a RoI's area in pixels; sizes are spread evenly by their logarithm."""


def step_and_arguments(experiment: Experiment, devices: Sequence[jax.Device]) -> tuple[Any, tuple[Any, Any]]:
    """Returns the training step for devices, and the shapes of its state and batch."""
    step, make_state = make_step(experiment, devices)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape[1:]), leaf.dtype),
        synthetic_batch(experiment, devices=1, objects=1),
    )
    return step, (jax.eval_shape(make_state), batch)


@lru_cache(maxsize=4)
def step_flops(experiment: Experiment) -> int:
    """Returns the FLOPs of a training step on one of its devices, a TPU, however many there are.

    The step is only traced. The loops of the RoI operations depend on the RoIs, so these operations are run,
    with synthetic RoIs on maps of one channel. No other loop of unknown length computes products.
    """
    step, arguments = step_and_arguments(experiment, jax.devices()[:1])
    with compiling_for("tpu"):
        program = jax.make_jaxpr(step)(*arguments)
    pooling = (channels * product_flops(pool, given) for pool, given, channels in roi_programs(experiment))
    return static_flops(program) + sum(pooling)


def roi_programs(experiment: Experiment) -> Iterator[tuple[Callable[..., Any], list[Any], int]]:
    """Yields the RoI operations of a step on one channel: function, arguments, and the number of channels."""
    config, images = experiment.model, experiment.train.images_per_device
    features, (low, high) = config.backbone.features, config.roi.levels
    finest, _ = ROI_LEVELS[features]
    levels = slice(low - finest, high - finest + 1)
    strides = STRIDES[features][levels]
    _, (state, batch) = step_and_arguments(experiment, jax.devices()[:1])

    def make_pyramid(variables: Any, images: jax.Array, sizes: jax.Array) -> Any:
        return make_model(config).apply(variables, images[0], sizes[0], method="pyramid")

    variables = {"params": state.params, **state.model_state}
    pyramid = jax.eval_shape(make_pyramid, variables, batch.images, batch.sizes)[levels]
    sides, channels = tuple(level.shape[1:3] for level in pyramid), pyramid[0].shape[-1]
    for pool, rois in _poolings(experiment):
        workload = Workload("", "", sides, strides, 1, rois, pool.size, SIZES)
        boxes = jnp.asarray(workload.boxes(images))
        canonical = config.roi.canonical_size, config.roi.canonical_level, config.conventions.level_epsilon
        assigned = ops.assign_levels(boxes, low, high, *canonical) - low
        yield _gradient(pool, strides), [workload.features(images, jnp.float32), boxes, assigned], channels


def _poolings(experiment: Experiment) -> list[tuple[RoIPooling, int]]:
    """Returns the RoI poolings of a step, with the number of RoIs of an image; branches may share one."""
    config = experiment.model
    if not config.tasks:
        return []
    positive = int(config.roi.samples_per_image * config.roi.positive_fraction)
    branches = {"masks": "mask", "keypoints": "keypoint"}
    others = dict.fromkeys(config.pool_of(branches[task]) for task in config.tasks if task in branches)
    box = config.pool_of("box")
    return [(box, config.roi.samples_per_image), *((pool, positive) for pool in others if pool != box)]


def _gradient(pool: RoIPooling, strides: tuple[int, ...]) -> Callable[..., Any]:
    """Returns a function of maps, boxes and levels: the sum of the pooled maps, and its gradient."""

    def total(maps: Any, boxes: jax.Array, levels: jax.Array) -> jax.Array:
        return ops.pool_rois(maps, boxes, levels, strides, *pool).sum()

    return jax.value_and_grad(total)
