"""The model as a compiled function, for detector and evaluator."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from mrcnn_jax.compiled_programs import StoredFunction
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.errors import InputError, first_line
from mrcnn_jax.models.systems import make_model
from mrcnn_jax.models.two_stage import TwoStage

MAX_PROGRAMS = 16
"""Compiled programs in memory, one for each padded size: each takes tens of megabytes and hundreds of memory
maps, of which a process has 65,530."""


@lru_cache(maxsize=12)
def compiled(
    model: ModelConfig, dtype: str, all_devices: bool = False, directory: Any = None,
    method: FunctionType = TwoStage.__call__, limit: int = MAX_PROGRAMS,
) -> StoredFunction:  # fmt: skip
    """Returns the model as a compiled function: (variables, images, sizes) -> Predictions by default.

    Args:
        model: configuration of the model.
        dtype: precision of the computation, "float32" or "bfloat16".
        all_devices: map it over all devices of this process; all arrays but the variables have a leading axis
            of devices.
        directory: of stored programs, if any.
        method: function of the bound model and of the arguments after the variables.
        limit: programs in memory.
    """

    def make_function() -> jax.stages.Wrapped:
        def apply(variables, *arrays):  # here: JAX keeps the programs of a function as long as it lives
            return make_model(model, jnp.dtype(dtype)).apply(variables, *arrays, method=method)

        def apply_row(variables, arrays):
            result = apply(variables, *jax.tree.map(lambda leaf: leaf[0], arrays))
            return jax.tree.map(lambda leaf: leaf[None], result)

        if not all_devices:
            return jax.jit(apply)
        # not pmap, which never frees the programs of a function
        rows = PartitionSpec(DEVICE_AXIS)
        mapped = jax.shard_map(apply_row, mesh=local_mesh(), in_specs=(PartitionSpec(), rows), out_specs=rows,
                               check_vma=False)  # fmt: skip
        return jax.jit(lambda variables, *arrays: mapped(variables, arrays))

    key = f"inference {method.__qualname__} {all_devices} {dtype} {model}"
    return StoredFunction(make_function, directory, key, limit=limit)


def local_mesh() -> Mesh:
    """Returns the devices of this process as a mesh of one axis."""
    return Mesh(np.array(jax.local_devices()), (DEVICE_AXIS,))


@contextmanager
def explaining_exhaustion() -> Iterator[None]:
    """Turns the end of the device's memory into an InputError that says what helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
        batch = "--batch-size (of evaluate, --evaluation.images-per-device)"
        advice = f"lower --data.short-edge-test and --data.long-edge, or {batch}"
        raise InputError(f"out of device memory: {advice}: {reason}") from error
