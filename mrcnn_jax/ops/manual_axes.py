"""Types of arrays under ``jax.shard_map``, which names the mesh axes that each array varies on.

A loop must begin with arrays of the types that its steps return; ``jnp.full_like(array, value, shape=...)``
makes a constant that varies like an array.
"""

import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Shaped


def vary_alike(*arrays: Shaped[Array, "..."]) -> tuple[Shaped[Array, "..."], ...]:
    """Lets all arrays vary on the axes that any of them varies on; outside ``shard_map`` nothing changes."""
    arrays = tuple(map(jnp.asarray, arrays))
    own = [jax.typeof(array).mat.varying for array in arrays]
    axes = frozenset().union(*own)
    return tuple(
        jax.lax.pcast(array, tuple(sorted(axes - those)), to="varying") if axes - those else array
        for array, those in zip(arrays, own, strict=True)
    )
