"""FLOPs of a training step's convolutions and matrix products on one device, every iteration of its loops
counted."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.roi._workloads import Workload
from benchmarks.tpu._flops import product_flops, static_flops
from mrcnn_jax import ops
from mrcnn_jax.config import Experiment
from mrcnn_jax.config.model import RoIPooling
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.models.mask_rcnn import ROI_LEVELS, STRIDES, MaskRCNN, init_variables
from mrcnn_jax.runtime import compiling_for

SIZES = (16, 800)
"""Range of the square root of a RoI's area in pixels; sizes are spread evenly by their logarithm."""


def step_flops(step: Callable[..., Any], arguments: tuple[Any, ...], experiment: Experiment) -> int:
    """Returns the FLOPs of a training step on one of its devices, a TPU.

    The step is only traced, with arrays or shape structs. The loops of the RoI operations depend on the RoIs,
    so these operations are run, with synthetic RoIs on maps of one channel. No other loop of unknown length
    in the step computes products.
    """
    with compiling_for("tpu"):
        program = jax.make_jaxpr(step)(*arguments)
    pooling = (channels * product_flops(pool, given) for pool, given, channels in roi_programs(experiment))
    return static_flops(program) + sum(pooling)


def roi_programs(experiment: Experiment) -> Iterator[tuple[Callable[..., Any], list[Any], int]]:
    """Yields the RoI operations of a step on one channel: function, arguments, and the number of channels."""
    config, images = experiment.model, experiment.train.images_per_device
    model, features, (low, high) = MaskRCNN(config), config.backbone.features, config.roi.levels
    finest, _ = ROI_LEVELS[features]
    levels = slice(low - finest, high - finest + 1)
    size, strides = padded_size(experiment.data, portrait=False), STRIDES[features][levels]
    batch = jax.ShapeDtypeStruct((images, *size, 3), jnp.uint8), jax.ShapeDtypeStruct((images, 2), jnp.int32)
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))

    def pyramid_of(*given: Any) -> Any:
        return model.apply(*given, train=True, method="pyramid", mutable=["batch_stats"])[0]

    pyramid = jax.eval_shape(pyramid_of, variables, *batch)[levels]
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
    def run(maps: Any, boxes: jax.Array, levels: jax.Array) -> Any:
        def total(maps: Any) -> jax.Array:
            return ops.pool_rois(
                maps, boxes, levels, strides, pool.size, operation=pool.operation, reduction=pool.reduction,
                sampling_ratio=pool.sampling_ratio, half_pixel=pool.half_pixel,
            ).sum()  # fmt: skip

        return jax.value_and_grad(total)(maps)

    return run
