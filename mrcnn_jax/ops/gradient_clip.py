"""Clipping of a gradient on its way back."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.typing import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def clip_gradient(values: Float[Array, "*n"], limit: float) -> Float[Array, "*n"]:
    """Returns the values, and limits each element of their gradient to +-``limit``, in reverse mode."""
    return values


def _forward(values, limit):
    return values, None


def _backward(limit, _, gradient):
    return (jnp.clip(gradient, -limit, limit),)


clip_gradient.defvjp(_forward, _backward)
