"""Placement of arrays on the devices of all processes: the state replicated, batches sharded."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.distributed import DEVICE_AXIS

REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(DEVICE_AXIS)


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of the given devices, by default all, in the order of the global batch."""
    if devices is None:
        devices = [device for process in range(jax.process_count()) for device in jax.local_devices(process)]
    return Mesh(np.array(devices), (DEVICE_AXIS,))


class Sharding:
    """Puts state and batches where the training step of ``train.parallel`` takes them.

    ``pmap`` takes and returns local arrays (of this process's devices), ``shard_map`` global arrays (of all
    processes' devices); with one process both are the same.

    Args:
        parallel: "pmap" or "shard_map".
    """

    def __init__(self, parallel: str):
        self._global_mesh = device_mesh()
        self._local_mesh = self._global_mesh.local_mesh
        self._mesh = self._local_mesh if parallel == "pmap" else self._global_mesh

    def replicate(self, tree: Any) -> Any:
        """Copies host arrays, equal in all processes, to every device."""
        put = partial(jax.make_array_from_process_local_data, NamedSharding(self._mesh, REPLICATED))
        return jax.tree.map(lambda leaf: put(np.asarray(leaf)), tree)

    def shard(self, tree: Any) -> Any:
        """Splits this process's host arrays over its devices; returns before the transfer has ended.

        Args:
            tree: arrays [local devices * B, ...].

        Returns:
            Arrays [devices, B, ...] with one row on each device.
        """
        devices, sharding = self._local_mesh.size, NamedSharding(self._mesh, SHARDED)

        def put(leaf):
            leaf = leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(sharding, leaf)

        return jax.tree.map(put, tree)

    def to_local(self, tree: Any) -> Any:
        """Returns the replicated state as arrays of this process's devices, for programs of one process."""
        return _with_mesh(tree, self._local_mesh)

    def to_global(self, tree: Any) -> Any:
        """Copies the replicated state into arrays of all processes' devices, so that each can save a part.

        The copy outlives the donation of the state to the next step.
        """
        return _with_mesh(_copy(tree), self._global_mesh)


def _with_mesh(tree, mesh):
    def rewrap(leaf):
        shards = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, REPLICATED), shards)

    return jax.tree.map(rewrap, tree)


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def prefetch(items: Iterator[Any], put: Callable[[Any], Any]) -> Iterator[Any]:
    """Yields ``put(item)`` of each item, called one item ahead so that transfers overlap with computation."""
    pending = None
    for item in items:
        pending, ready = put(item), pending
        if ready is not None:
            yield ready
    if pending is not None:
        yield pending
