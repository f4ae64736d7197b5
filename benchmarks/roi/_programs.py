"""Programs of the RoI benchmarks: the operations, their inputs, and a function for each implementation."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roi._rows import FORWARD
from benchmarks.roi._workloads import Workload
from mrcnn_jax import ops


class Operation(NamedTuple):
    """Arguments of ``ops.pool_rois``, or of the position-sensitive "ps-pool" and "ps-align", and the name of
    the operation in torchvision.ops if it exists."""

    operation: str
    reduction: str
    sampling_ratio: int
    torchvision: str | None = None

    @property
    def is_position_sensitive(self) -> bool:
        return self.operation.startswith("ps-")

    @property
    def arguments(self) -> tuple[str, str, int]:
        """Arguments of ``ops.roi_implementations``; position-sensitive averages have those of RoIAlign."""
        return "align" if self.is_position_sensitive else self.operation, self.reduction, self.sampling_ratio

    @property
    def implementations(self) -> tuple[str, ...]:
        return tuple(name for name in ops.roi_implementations(*self.arguments) if name != "reference")

    def is_for(self, workload: Workload) -> bool:
        """Returns whether the workload has the maps that the operation reads."""
        return self.is_position_sensitive == (workload.groups > 1)


OPERATIONS = {
    "align": Operation("align", "average", 2, "roi_align"),
    "pool": Operation("pool", "max", 2, "roi_pool"),
    "align-adaptive": Operation("align", "average", 0, "roi_align"),
    "align-max": Operation("align", "max", 2),
    "warp": Operation("warp", "average", 2),
    "ps-pool": Operation("ps-pool", "average", 0, "ps_roi_pool"),
    "ps-align": Operation("ps-align", "average", 2, "ps_roi_align"),
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
        operation, reduction, samples, _ = self.kind
        kind = {"operation": operation, "reduction": reduction}
        kind["samples"] = None if operation in ("pool", "ps-pool") else samples
        others = {"workload": self.workload.name, "batch": self.batch, "dtype": self.dtype}
        return kind | others | {"direction": self.direction}

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Features, RoIs and levels; backward, also the cotangent of the pooled features."""
        inputs = _make_inputs(self.workload, self.batch, self.dtype)
        return inputs[:3] if self.direction == FORWARD else inputs


@lru_cache(maxsize=1)
def _make_inputs(workload, batch, dtype):
    """Makes the arguments of all programs of a workload, on the device."""
    boxes = workload.boxes(batch)
    shape = (*boxes.shape[:2], workload.bins, workload.bins, workload.channels // workload.groups**2)
    cotangent = jnp.asarray(np.random.default_rng(2).standard_normal(shape, dtype=np.float32), dtype)
    levels = jnp.asarray(workload.levels(boxes))
    return jax.block_until_ready((workload.features(batch, dtype), jnp.asarray(boxes), levels, cotangent))


def program(group: Group, implementation: str) -> Callable[..., Any]:
    """Returns a function of features, RoIs and levels; backward, also of the cotangent, with the gradient."""
    kind = group.kind

    def pool(features, boxes, levels):
        if kind.is_position_sensitive:
            return _pool_parts(group, features[0], boxes, implementation)
        return ops.pool_rois(
            features, boxes, levels, group.workload.strides, group.workload.bins, operation=kind.operation,
            reduction=kind.reduction, sampling_ratio=kind.sampling_ratio, implementation=implementation,
        )  # fmt: skip

    if group.direction == FORWARD:
        return pool

    def both(features, boxes, levels, cotangent):
        pooled, backward = jax.vjp(lambda features: pool(features, boxes, levels), features)
        return pooled, backward(cotangent)[0]

    return both


def _pool_parts(group, features, boxes, implementation):
    """Pools position-sensitive maps, by the rules of torchvision."""
    load, (batch, number, _) = group.workload, boxes.shape
    images = jnp.repeat(jnp.arange(batch, dtype=boxes.dtype), number)[:, None]
    rois = jnp.concatenate([images, boxes.reshape(-1, 4)], axis=1)
    features = features.reshape(*features.shape[:3], load.groups, load.groups, -1)
    place = load.bins, 1 / load.strides[0]
    if group.kind.operation == "ps-pool":
        pooled = ops.ps_roi_pool(features, rois, *place, "cells", implementation)
    else:
        pooled = ops.ps_roi_align(features, rois, *place, group.kind.sampling_ratio, implementation)
    return pooled.reshape(batch, number, *pooled.shape[1:])


def bounds(group: Group) -> dict[str, int]:
    """Returns bytes that must be read or written, and a bound on temporary ones: twice the pooled features
    and all feature maps."""
    features, boxes, levels, cotangent = _make_inputs(group.workload, group.batch, group.dtype)
    size, pooled = sum(level.nbytes for level in features), cotangent.nbytes
    times = 1 if group.direction == FORWARD else 2
    necessary = times * (size + pooled) + boxes.nbytes + levels.nbytes
    return {"necessary_bytes": necessary, "bound_bytes": 2 * pooled + size}
