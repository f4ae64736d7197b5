"""The programs of the RoI benchmarks: which operations there are, their inputs, and the function of each form."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roi._one_hot import one_hot_align
from benchmarks.roi._workloads import Workload
from mrcnn_jax import ops

ONE_HOT, TORCHVISION = "one-hot einsum", "torchvision"
FORWARD, BACKWARD = "forward", "forward+backward"
DTYPES = ("float32", "bfloat16")


class Operation(NamedTuple):
    """Arguments of ``ops.pool_rois``, and the name of the same operation in torchvision.ops, if it is there."""

    operation: str
    reduction: str
    samples: int
    theirs: str | None = None


OPERATIONS = {
    "align": Operation("align", "average", 2, "roi_align"),
    "pool": Operation("pool", "max", 2, "roi_pool"),
    "align-adaptive": Operation("align", "average", 0, "roi_align"),
    "align-max": Operation("align", "max", 2),
    "warp": Operation("warp", "average", 2),
}


@dataclass(frozen=True)
class Group:
    """Programs that do the same thing, whose rounds are interleaved."""

    workload: Workload
    batch: int
    dtype: str
    name: str  # of the operation
    direction: str
    forms: tuple[str, ...]

    @property
    def kind(self) -> Operation:
        return OPERATIONS[self.name]

    @property
    def key(self) -> dict[str, Any]:
        """The fields by which a row of the result file says what was measured."""
        samples = None if self.kind.operation == "pool" else self.kind.samples
        what = {"operation": self.kind.operation, "reduction": self.kind.reduction, "samples": samples}
        return what | {"workload": self.workload.name, "batch": self.batch, "dtype": self.dtype, "direction": self.direction}


class Inputs(NamedTuple):
    features: list[jax.Array]
    boxes: jax.Array
    levels: jax.Array
    cotangent: jax.Array


def default_implementation(kind: Operation) -> str:
    """What ``ops.pool_rois`` takes on this machine if it is not told."""
    return ops.default_implementation(*kind[:3], jax.default_backend())


@lru_cache(maxsize=1)
def make_inputs(workload: Workload, batch: int, dtype: str) -> Inputs:
    """Arguments of every program of a workload, on the device."""
    boxes = workload.boxes(batch)
    cotangent = np.random.default_rng(2).standard_normal((*boxes.shape[:2], workload.bins, workload.bins, workload.channels), dtype=np.float32)
    inputs = Inputs(workload.features(batch, dtype), jnp.asarray(boxes), jnp.asarray(workload.levels(boxes)), jnp.asarray(cotangent, dtype))
    return jax.block_until_ready(inputs)


def program(group: Group, form: str) -> Callable[..., Any]:
    """A function of features, RoIs and levels that gives the pooled features; backward also of their cotangent, adding the features' gradient."""
    workload, kind = group.workload, group.kind
    if form == ONE_HOT:
        pool = partial(one_hot_align, strides=workload.strides, bins=workload.bins, samples=kind.samples)
    else:
        settings = {"operation": kind.operation, "reduction": kind.reduction, "sampling_ratio": kind.samples}
        pool = partial(ops.pool_rois, strides=workload.strides, output_size=workload.bins, **settings, form=form)
    if group.direction == FORWARD:
        return lambda features, boxes, levels: pool(features, boxes, levels)

    def both(features, boxes, levels, cotangent):
        pooled, backward = jax.vjp(lambda features: pool(features, boxes, levels), features)
        return pooled, backward(cotangent)[0]

    return both


def bounds(group: Group) -> dict[str, int]:
    """Bytes that the operation cannot do without, and those it should not need besides.

    ``necessary_bytes``: every argument read once and every result written once, as if each cell of each level were read: features, RoIs, their
    levels and the pooled features; backward also the cotangent and the features' gradient. ``bound_bytes``: twice the pooled features and all the
    features.
    """
    inputs = make_inputs(group.workload, group.batch, group.dtype)
    features, pooled = sum(level.nbytes for level in inputs.features), inputs.cotangent.nbytes
    times = 2 if group.direction == BACKWARD else 1
    return {"necessary_bytes": times * (features + pooled) + inputs.boxes.nbytes + inputs.levels.nbytes, "bound_bytes": 2 * pooled + features}
