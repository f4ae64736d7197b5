"""Sums of a head's loss over RoI slots, many of which are empty."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Bool, Float

BLOCK = 16
"""RoIs of a block: enough for fast convolutions, few enough that little is computed for nothing."""


def sum_over_rois(
    loss: Callable[..., Float[Array, ""]], head: nn.Module, features: Float[Array, "B N h w c"], targets: Any,
    valid: Bool[Array, "B N"],
) -> Float[Array, ""]:  # fmt: skip
    """Computes loss(head, features, *targets), a sum over RoIs to which those that are not valid add nothing.

    Positive RoIs rarely fill their slots. On CPU, RoIs are taken block by block, and blocks without a valid
    one cost nothing. Value and gradient of a block are computed together, so that no activation outlives it.

    Args:
        loss: of the head, and features and targets of any number of RoIs; no second derivative on CPU.
        head: bound to its variables; without batch norm.
        features: of each RoI.
        targets: arrays [B, N, ...]; no gradient flows to them.
        valid: slots that hold a RoI.
    """
    head, variables = head.unbind()
    features, targets, valid = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (features, targets, valid)
    )

    def block_loss(variables, features, targets):
        return loss(partial(head.apply, variables), features, *targets)

    if target_platform() != "cpu":
        return block_loss(variables, features, targets)
    padding = -len(valid) % BLOCK

    def split(leaf):
        leaf = jnp.pad(leaf, [(0, padding), *[(0, 0)] * (leaf.ndim - 1)])
        return leaf.reshape(-1, BLOCK, *leaf.shape[1:])

    blocks = jax.tree.map(split, (features, targets, valid))
    return _sum_over_blocks(block_loss, variables, *blocks)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_over_blocks(loss, variables, features, targets, valid):
    return _value_and_gradient(loss, variables, features, targets, valid)[0]


def _value_and_gradient(loss, variables, features, targets, valid):
    compute = jax.value_and_grad(loss, argnums=(0, 1))

    def add(total, block):
        features, targets, valid = block

        def visit():
            value, (variables_gradient, features_gradient) = compute(variables, features, targets)
            return jax.tree.map(jnp.add, total, (value, variables_gradient)), features_gradient

        return jax.lax.cond(valid.any(), visit, lambda: (total, jnp.zeros_like(features)))

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, variables)
    (value, gradient), features_gradient = jax.lax.scan(add, zero, (features, targets, valid))
    return value, (gradient, features_gradient)


def _scale_gradient(loss, gradients, cotangent):
    scaled = jax.tree.map(lambda leaf: (cotangent * leaf).astype(leaf.dtype), gradients)
    return *scaled, None, None


_sum_over_blocks.defvjp(_value_and_gradient, _scale_gradient)
