"""Muon: momentum whose matrices are replaced by the nearest orthogonal ones (Jordan et al., 2024).

``optax.contrib.muon`` multiplies the whole matrix in each Newton-Schulz iteration. Here the iterations stay
in the small square matrix of its rows' products, and the matrix is multiplied once, in the end: for M rows
and N columns 4 M^2 N + 36 M^3 operations instead of 20 M^2 N + 10 M^3, of which 3x3 kernels have N = 9 M.

References:
    Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
    Liu et al., "Muon is scalable for LLM training", 2025 (the size of an update).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax

from mrcnn_jax.typing import Array, Float

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Quintic polynomial of an iteration (Jordan et al.), which takes singular values to between 0.7 and 1.2."""
UPDATE_RMS = 0.2
"""Root mean square of an update at a learning rate of 1, that of AdamW (Liu et al.)."""
LEAST_SIDE = 16
"""Inputs and outputs that a hidden layer has at least: images and a few classes or coordinates have fewer."""


def scale_by_muon() -> optax.GradientTransformation:
    """Returns Nesterov momentum, orthogonalized, for the kernels of hidden layers, and Adam for all else.

    Updates have the size of Adam's, so that both take one learning rate.
    """
    muon = optax.chain(
        optax.trace(MOMENTUM, nesterov=True),
        optax.stateless(lambda updates, params: jax.tree.map(_orthogonal_update, updates)),
    )
    return optax.multi_transform(
        {"muon": muon, "adam": optax.scale_by_adam()},
        lambda params: jax.tree.map(lambda leaf: "muon" if _is_hidden(leaf) else "adam", params),
    )


def _is_hidden(leaf):
    return leaf.ndim > 1 and min(leaf.shape[-1], leaf.size // leaf.shape[-1]) >= LEAST_SIDE


def _orthogonal_update(kernel):
    """Orthogonalizes a kernel, [..., inputs, outputs], as the matrix that maps a window to the outputs."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return UPDATE_RMS * math.sqrt(max(matrix.shape)) * orthogonalize(matrix).reshape(kernel.shape)


def orthogonalize(matrix: Float[Array, "M N"]) -> Float[Array, "M N"]:
    """Returns a matrix of the same singular vectors, whose singular values are about 1.

    Those below a thousandth of the largest may end lower, as in the usual iteration.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalize(matrix.T).T
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # TPUs would multiply in bfloat16
    scale = 1 / (jnp.linalg.norm(matrix) + 1e-8)
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    squares, total = product(matrix, matrix.T) * scale**2, identity * scale
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):  # the matrix would become factor @ matrix; all factors commute
        factor = a * identity + b * squares + c * product(squares, squares)
        squares, total = product(factor, product(squares, factor)), product(factor, total)
    return product(total, matrix)
