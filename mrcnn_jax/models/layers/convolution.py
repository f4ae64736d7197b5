"""The convolution of every layer: ``flax.linen.Conv`` with the operation that is fastest for the platform."""

from functools import partial

import flax.linen as nn
import jax

from mrcnn_jax.models.layers.grouped_convolution import grouped_convolution
from mrcnn_jax.typing import Array, Float


def convolution(
    x: Float[Array, "N H W C"], kernel: Float[Array, "h w c O"], *args, feature_group_count: int = 1, **kwargs
) -> Float[Array, "N y x O"]:
    """Computes ``jax.lax.conv_general_dilated``, whose arguments it takes."""
    if feature_group_count > 1:
        return grouped_convolution(x, kernel, *args, feature_group_count=feature_group_count, **kwargs)
    return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


Conv = partial(nn.Conv, conv_general_dilated=convolution)
"""``flax.linen.Conv`` that computes ``convolution``."""
