"""Choice of candidates for training: at random by their labels, or by their losses."""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.ops.matching import BACKGROUND, FOREGROUND
from mrcnn_jax.ops.nms import masked_top_k
from mrcnn_jax.typing import Array, Bool, Float, Int, PRNGKeyArray


def sample_labels(
    key: PRNGKeyArray, labels: Int[Array, "N"], num_samples: int, positive_fraction: float
) -> tuple[Int[Array, "S"], Bool[Array, "S"], Bool[Array, "S"]]:
    """Draws candidates without replacement, up to a fraction of them FOREGROUND, the rest BACKGROUND.

    Args:
        key: PRNG key.
        labels: of the candidates, as ``match`` returns them.
        num_samples: number of slots S.
        positive_fraction: maximum fraction of the slots for FOREGROUND.

    Returns:
        Index of each sample, whether it is positive, and whether the slot is valid. Positives come first: the
        slots ``[0, num_samples * positive_fraction)`` hold all of them.

    Raises:
        ValueError: for labels of another shape, a fraction beyond 0 and 1, or no samples.
    """
    check_shape("labels", labels, "N")
    if not 0 <= positive_fraction <= 1 or num_samples < 1:
        given = f"{num_samples} and {positive_fraction}"
        raise ValueError(f"num_samples must be 1 or more and positive_fraction within 0 and 1, not {given}")
    max_positive = int(num_samples * positive_fraction)
    priority = jax.random.uniform(key, labels.shape)
    positive, positive_valid = masked_top_k(labels == FOREGROUND, priority, max_positive)
    background, background_valid = masked_top_k(labels == BACKGROUND, priority, num_samples)
    num_positive = positive_valid.sum()
    slot = jnp.arange(num_samples)
    is_positive = slot < num_positive
    rank = jnp.maximum(slot - num_positive, 0)  # among the background samples
    index = jnp.where(is_positive, jnp.pad(positive, (0, num_samples - max_positive)), background[rank])
    return index, is_positive, is_positive | background_valid[rank]


def hard_examples(
    losses: Float[Array, "N"], valid: Bool[Array, "N"], num_samples: int
) -> tuple[Int[Array, "S"], Bool[Array, "S"]]:
    """Chooses the valid candidates of greatest loss; the choice has no gradient.

    Returns:
        Index of each sample, greatest loss first (of equal losses the first candidate), and whether the slot
        is valid.

    Raises:
        ValueError: if there are not as many candidates in both arrays, or no samples.

    References:
        Shrivastava et al., "Training region-based object detectors with online hard example mining", 2016;
        without its suppression of overlapping candidates, as in R-FCN and FCIS.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be 1 or more, not {num_samples}")
    return masked_top_k(valid, jax.lax.stop_gradient(losses), num_samples)
