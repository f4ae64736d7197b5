"""FLOPs of a train step's convolutions and matrix products on one device, with every turn of its loops: compilers count the body of a loop once."""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks.product_flops import product_flops
from benchmarks.workloads import Workload
from mrcnn_jax import ops
from mrcnn_jax.config import Experiment, PoolConfig
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.models.mask_rcnn import ROI_LEVELS, STRIDES, MaskRCNN, initialise

SIZES = (16, 800)
"""The square root of a RoI's area in pixels is spread from here to here, evenly by its logarithm over a pyramid, as in benchmarks/workloads.py."""


def step_flops(step: Callable[..., Any], arguments: tuple[Any, ...], experiment: Experiment, platform: str = "tpu") -> int:
    """FLOPs of a step on one of its devices, on ``platform``: two for each pair of numbers that a convolution or a matrix product multiplies and adds.

    The step is only traced, with arrays or shape structs. How often the loops of the RoI operations turn depends on the RoIs, so these are run, with made-up RoIs on
    maps of one channel. No other loop of unknown length in the step multiplies matrices. Padding and the zeros between strided gradients are not counted.
    """
    return static_flops(jax.make_jaxpr(step)(*arguments), platform) + sum(
        channels * product_flops(read, arrays, platform) for read, arrays, channels in roi_programs(experiment)
    )


def static_flops(program: ClosedJaxpr, platform: str, turns: int = 0) -> int:
    """FLOPs of the convolutions and matrix products of a program. A loop whose length data decide counts as ``turns``, a branch that they decide as the dearest."""
    jaxpr, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _flops(jaxpr, platform, turns)


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


def _flops(jaxpr: Jaxpr, platform: str, turns: int) -> int:
    total, taken = 0, {}  # which branch the platform takes, by the variable that says so
    for equation in jaxpr.eqns:
        settings, name = equation.params, equation.primitive.name
        inner = [_flops(program, platform, turns) for program in _inner(equation)]
        match name:
            case "platform_index":
                taken[equation.outvars[0]] = [names is None or platform in names for names in settings["platforms"]].index(True)
            case "cond":
                index = equation.invars[0]
                total += inner[taken[index]] if index in taken else max(inner)
            case "scan":
                total += settings["length"] * sum(inner)
            case "while":
                total += turns * sum(inner)
            case "dot_general":
                (contracted, _), _ = settings["dimension_numbers"]
                total += 2 * equation.outvars[0].aval.size * prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            case "conv_general_dilated":
                total += _convolution_flops(equation)
            case _:
                total += sum(inner)
    return total


def _inner(equation) -> list[Jaxpr]:
    """The programs in an equation: bodies, branches in their order, what is called."""
    settings = (value if isinstance(value, (tuple, list)) else (value,) for value in equation.params.values())
    found = [program for values in settings for program in values if isinstance(program, (Jaxpr, ClosedJaxpr))]
    return [program.jaxpr if isinstance(program, ClosedJaxpr) else program for program in found]


def _convolution_flops(equation) -> int:
    settings, (images, kernel), out = equation.params, (variable.aval.shape for variable in equation.invars), equation.outvars[0].aval.shape
    numbers = settings["dimension_numbers"]
    pairs = prod(  # of places of the result and taps of the kernel that meet a real number
        _pairs(images[lhs], kernel[rhs], out[place], *of_side)
        for lhs, rhs, place, *of_side in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:],
            settings["window_strides"], settings["padding"], settings["lhs_dilation"], settings["rhs_dilation"], strict=True,
        )
    )  # fmt: skip
    return 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]] * pairs


def _pairs(size, taps, places, stride, padding, dilation, tap_dilation):
    """Along one side of an image."""
    position = np.arange(places)[:, None] * stride + np.arange(taps) * tap_dilation - padding[0]
    return int(((position >= 0) & (position <= (size - 1) * dilation) & (position % dilation == 0)).sum())
