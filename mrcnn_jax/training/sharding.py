"""Where arrays lie on the devices of all processes: the state as a copy on each, a batch split among them.

``pmap`` takes and returns what a process has of an array, ``shard_map`` the arrays of all processes; with one process both are the same. What is put here comes from
the host, or from a checkpoint, and is equal in all processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mrcnn_jax.models.norm import DEVICE_AXIS

WHOLE, SPLIT = PartitionSpec(), PartitionSpec(DEVICE_AXIS)


def device_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices of all processes, or those given, in the order of the global batch: process by process."""
    if devices is None:
        devices = [device for process in range(jax.process_count()) for device in jax.local_devices(process)]
    return Mesh(np.array(devices), (DEVICE_AXIS,))


class Sharding:
    """Puts state and batches where the step of ``train.parallel`` takes them, over all devices of all processes."""

    def __init__(self, parallel: str):
        self.all = device_mesh()
        self.mesh = self.all.local_mesh if parallel == "pmap" else self.all

    def state(self, tree: Any) -> Any:
        """Host arrays, the same in every process, as a copy on every device."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(NamedSharding(self.mesh, WHOLE), np.asarray(leaf)), tree)

    def batch(self, tree: Any) -> Any:
        """This process's arrays [local devices x images of a device, ...] as [devices, images of a device, ...], one part on each; returns at once."""
        devices = self.all.local_mesh.size

        def put(leaf):
            leaf = leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:])
            return jax.make_array_from_process_local_data(NamedSharding(self.mesh, SPLIT), leaf)

        return jax.tree.map(put, tree)

    def own(self, tree: Any) -> Any:
        """The state as this process has it: for programs that run in one process alone."""
        return jax.tree.map(lambda leaf: _wrapped(leaf, self.all.local_mesh), tree)

    def shared(self, tree: Any) -> Any:
        """The state as arrays of all processes, each of which can write a part of them; a copy, which outlives the next step's donation."""
        return jax.tree.map(lambda leaf: _wrapped(leaf, self.all), _copy(tree))


def _wrapped(leaf, mesh):
    shards = [shard.data for shard in leaf.addressable_shards]
    return jax.make_array_from_single_device_arrays(leaf.shape, NamedSharding(mesh, WHOLE), shards)


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def prefetch(items: Iterator[Any], put: Callable[[Any], Any]) -> Iterator[Any]:
    """The items as ``put`` returns them, always one more than was asked for, so that its way to the devices is hidden behind the step before."""
    waiting = None
    for item in items:
        waiting, ready = put(item), waiting
        if ready is not None:
            yield ready
    if waiting is not None:
        yield waiting
