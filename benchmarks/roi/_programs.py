"""Programs of the RoI benchmarks: the operations, their inputs, and a function for each implementation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roi._one_hot import one_hot_align
from benchmarks.roi._workloads import TINY, WORKLOADS, Workload
from mrcnn_jax import ops
from mrcnn_jax.errors import InputError

ONE_HOT, TORCHVISION = "one-hot einsum", "torchvision"
FORWARD, BACKWARD = "forward", "forward+backward"
DTYPES = ("float32", "bfloat16")
BY_NAME = WORKLOADS | {TINY.name: TINY}


class Operation(NamedTuple):
    """Arguments of ``ops.pool_rois``, and the name of the operation in torchvision.ops if it exists."""

    operation: str
    reduction: str
    sampling_ratio: int
    torchvision: str | None = None

    @property
    def implementations(self) -> tuple[str, ...]:
        """The fast implementations, and for RoIAlign the one-hot matrices."""
        fast = (name for name in ops.roi_implementations(*self[:3]) if name != "reference")
        return (*fast, *((ONE_HOT,) if self == OPERATIONS["align"] else ()))


OPERATIONS = {
    "align": Operation("align", "average", 2, "roi_align"),
    "pool": Operation("pool", "max", 2, "roi_pool"),
    "align-adaptive": Operation("align", "average", 0, "roi_align"),
    "align-max": Operation("align", "max", 2),
    "warp": Operation("warp", "average", 2),
}


@dataclass(frozen=True)
class Group:
    """Implementations of the same computation, whose rounds are interleaved."""

    workload: Workload
    batch: int
    dtype: str
    name: str  # of the operation
    direction: str
    implementations: tuple[str, ...]

    @property
    def kind(self) -> Operation:
        return OPERATIONS[self.name]

    @property
    def key(self) -> dict[str, Any]:
        """Fields of the result file that identify the computation."""
        samples = None if self.kind.operation == "pool" else self.kind.sampling_ratio
        return {
            "operation": self.kind.operation, "reduction": self.kind.reduction, "samples": samples,
            "workload": self.workload.name, "batch": self.batch, "dtype": self.dtype,
            "direction": self.direction,
        }  # fmt: skip


class Inputs(NamedTuple):
    features: list[jax.Array]
    boxes: jax.Array
    levels: jax.Array
    cotangent: jax.Array


def check_names(options: Any, *extra: str) -> None:
    """Raises InputError for operations, workloads, implementations or dtypes in options that do not exist."""
    implementations = {name for kind in OPERATIONS.values() for name in kind.implementations} | set(extra)
    known = {
        "operations": OPERATIONS, "workloads": BY_NAME, "implementations": sorted(implementations),
        "dtypes": DTYPES,
    }  # fmt: skip
    for option, allowed in known.items():
        for name in getattr(options, option):
            if name not in allowed:
                names = ", ".join(map(repr, allowed))
                raise InputError(f"--{option} does not know {name!r}: choose from {names}")


@lru_cache(maxsize=1)
def make_inputs(workload: Workload, batch: int, dtype: str) -> Inputs:
    """Makes the arguments of all programs of a workload, on the device."""
    boxes = workload.boxes(batch)
    shape = (*boxes.shape[:2], workload.bins, workload.bins, workload.channels)
    cotangent = jnp.asarray(np.random.default_rng(2).standard_normal(shape, dtype=np.float32), dtype)
    levels = jnp.asarray(workload.levels(boxes))
    return jax.block_until_ready(
        Inputs(workload.features(batch, dtype), jnp.asarray(boxes), levels, cotangent)
    )


def program(group: Group, implementation: str) -> Callable[..., Any]:
    """Returns a function of features, RoIs and levels; backward, also of the cotangent, with the gradient."""
    workload, kind = group.workload, group.kind
    if implementation == ONE_HOT:
        pool = partial(
            one_hot_align, strides=workload.strides, bins=workload.bins, samples=kind.sampling_ratio
        )
    else:
        pool = partial(
            ops.pool_rois, strides=workload.strides, output_size=workload.bins, operation=kind.operation,
            reduction=kind.reduction, sampling_ratio=kind.sampling_ratio, implementation=implementation,
        )  # fmt: skip
    if group.direction == FORWARD:
        return lambda features, boxes, levels: pool(features, boxes, levels)

    def both(features, boxes, levels, cotangent):
        pooled, backward = jax.vjp(lambda features: pool(features, boxes, levels), features)
        return pooled, backward(cotangent)[0]

    return both


def bounds(group: Group) -> dict[str, int]:
    """Returns the bytes that must be read and written, and a bound on temporary memory.

    ``necessary_bytes``: every argument read once and every result written once. ``bound_bytes``: twice the
    pooled features and all feature maps.
    """
    inputs = make_inputs(group.workload, group.batch, group.dtype)
    features, pooled = sum(level.nbytes for level in inputs.features), inputs.cotangent.nbytes
    times = 2 if group.direction == BACKWARD else 1
    necessary = times * (features + pooled) + inputs.boxes.nbytes + inputs.levels.nbytes
    return {"necessary_bytes": necessary, "bound_bytes": 2 * pooled + features}
