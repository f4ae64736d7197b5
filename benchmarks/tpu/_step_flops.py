"""FLOPs of a train step's convolutions and matrix products on one device, with every turn of its loops: compilers count the body of a loop once."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.roi._workloads import Workload
from benchmarks.tpu._product_flops import product_flops
from benchmarks.tpu._static_flops import static_flops
from mrcnn_jax import ops
from mrcnn_jax.config import Experiment, PoolConfig
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.models.mask_rcnn import ROI_LEVELS, STRIDES, MaskRCNN, initialise

SIZES = (16, 800)
"""The square root of a RoI's area in pixels is spread from here to here, evenly by its logarithm over a pyramid, as in benchmarks/workloads.py."""


def step_flops(step: Callable[..., Any], arguments: tuple[Any, ...], experiment: Experiment, platform: str = "tpu") -> int:
    """FLOPs of a step on one of its devices, on ``platform``: two for each pair of numbers that a convolution or a matrix product multiplies and adds.

    The step is only traced, with arrays or shape structs. How often the loops of the RoI operations turn depends on the RoIs, so these are run, with made-up RoIs on
    maps of one channel. No other loop of unknown length in the step multiplies matrices.
    """
    return static_flops(jax.make_jaxpr(step)(*arguments), platform) + sum(
        channels * product_flops(read, arrays, platform) for read, arrays, channels in roi_programs(experiment)
    )


def roi_programs(experiment: Experiment) -> Iterator[tuple[Callable[..., Any], list[Any], int]]:
    """The RoI operations of a step, forwards and backwards, on one channel of the pyramid: functions and their arguments, and the number of channels."""
    config, images = experiment.model, experiment.train.images_per_device
    model, (low, high), (finest, _) = MaskRCNN(config), config.roi.levels, ROI_LEVELS[config.backbone.features]
    read = slice(low - finest, high - finest + 1)
    strides, size = STRIDES[config.backbone.features][read], padded_size(experiment.data, portrait=False)
    shapes = (jax.ShapeDtypeStruct((images, *size, 3), jnp.uint8), jax.ShapeDtypeStruct((images, 2), jnp.int32))
    variables = jax.eval_shape(lambda: initialise(model, jax.random.key(0)))
    pyramid = jax.eval_shape(lambda *given: model.apply(*given, train=True, method="pyramid", mutable=["batch_stats"])[0], variables, *shapes)[read]
    for pool, rois in _readings(experiment):
        workload = Workload("", "", tuple(level.shape[1:3] for level in pyramid), strides, 1, rois, pool.size, SIZES)
        boxes = jnp.asarray(workload.boxes(images))
        levels = ops.assign_levels(boxes, low, high, config.roi.canonical_size, config.roi.canonical_level, config.roi.level_epsilon) - low
        yield _read(pool, strides), [workload.features(images, jnp.float32), boxes, levels], pyramid[0].shape[-1]


def _readings(experiment: Experiment) -> list[tuple[PoolConfig, int]]:
    """How RoIs are read in a step, and how many of an image: branches that read alike share what the box branch has read (training.step)."""
    config = experiment.model
    if not config.tasks:
        return []
    positive = int(config.roi.samples_per_image * config.roi.positive_fraction)
    branches = {"masks": config.mask.pool, "keypoints": config.keypoint.pool}
    others = dict.fromkeys(branches[task] for task in config.tasks if task in branches)
    return [(config.box.pool, config.roi.samples_per_image), *((pool, positive) for pool in others if pool != config.box.pool)]


def _read(pool, strides):
    def read(maps, boxes, levels):
        def total(maps):
            return ops.pool_rois(maps, boxes, levels, strides, pool.size, operation=pool.operation, reduction=pool.reduction,
                                 sampling_ratio=pool.sampling_ratio, aligned=pool.aligned).sum()  # fmt: skip

        return jax.value_and_grad(total)(maps)

    return read
