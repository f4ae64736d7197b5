"""The model as a compiled function, for detector and evaluator."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mrcnn_jax.compiled_programs import StoredFunction
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.systems import make_model

MAX_PROGRAMS = 16
"""Compiled programs in memory, one for each padded size: each takes tens of megabytes and hundreds of memory
maps, of which a process has 65,530."""


@lru_cache(maxsize=8)
def compiled(
    model: ModelConfig, dtype: str, all_devices: bool = False, directory: Any = None
) -> StoredFunction:  # fmt: skip
    """Returns the model as a compiled function (variables, images, sizes) -> Predictions.

    Args:
        model: configuration of the model.
        dtype: precision of the computation, "float32" or "bfloat16".
        all_devices: map it over all devices of this process; images and sizes have a leading axis of devices.
        directory: of stored programs, if any.
    """

    def make_function() -> jax.stages.Wrapped:
        def apply(variables, images, sizes):
            return make_model(model, jnp.dtype(dtype)).apply(variables, images, sizes)

        def apply_row(variables, images, sizes):
            return jax.tree.map(lambda leaf: leaf[None], apply(variables, images[0], sizes[0]))

        if not all_devices:
            return jax.jit(apply)
        # not pmap, which never frees the programs of a function
        rows = PartitionSpec(DEVICE_AXIS)
        in_specs = PartitionSpec(), rows, rows
        return jax.jit(jax.shard_map(apply_row, mesh=local_mesh(), in_specs=in_specs, out_specs=rows,
                                     check_vma=False))  # fmt: skip

    key = f"inference {all_devices} {dtype} {model}"
    return StoredFunction(make_function, directory, key, limit=MAX_PROGRAMS)


def local_mesh() -> Mesh:
    """Returns the devices of this process as a mesh of one axis."""
    return Mesh(np.array(jax.local_devices()), (DEVICE_AXIS,))


@contextmanager
def explaining_exhaustion() -> Iterator[None]:
    """Turns the end of the device's memory into an InputError that says what helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        advice = "lower --data.short-edge-test and --data.long-edge, or --evaluation.images-per-device"
        raise InputError(f"out of device memory: {advice} ({reason})") from error
