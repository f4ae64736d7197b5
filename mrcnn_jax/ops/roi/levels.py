"""Assignment of RoIs to pyramid levels (FPN, equation 1)."""

import jax.numpy as jnp

from mrcnn_jax.ops.boxes import at_least_float32
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.typing import Array, Int, Shaped


def assign_levels(
    boxes: Shaped[Array, "*n 4"],
    lowest: int = 2,
    highest: int = 5,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    epsilon: float = 1e-6,
) -> Int[Array, "*n"]:
    """Computes the pyramid level of each box, floor(canonical_level + log2(sqrt(area) / canonical_size)).

    Args:
        boxes: (x1, y1, x2, y2) in image pixels, of any real type; those without area or with NaN go to the
            lowest level.
        lowest: finest level; subtract it from the result for the ``levels`` of ``pool_rois``.
        highest: coarsest level.
        canonical_size: side, in pixels, of a square box on ``canonical_level``.
        canonical_level: level of such a box.
        epsilon: added outside the logarithm; 1e-6 is torchvision's rule, 0 Detectron2's.

    Returns:
        Levels within [lowest, highest], int32.

    Raises:
        ValueError: for boxes of another shape.

    References:
        Lin et al., "Feature pyramid networks for object detection", 2017, equation 1.
    """
    check_shape("boxes", boxes, "...", 4)
    boxes = at_least_float32(boxes)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    area = jnp.maximum(width, 0) * jnp.maximum(height, 0)
    size = jnp.sqrt(jnp.where(area > 0, area, 0))  # NaN is 0
    level = jnp.floor(canonical_level + jnp.log2(jnp.maximum(size, 1e-8) / canonical_size) + epsilon)
    return jnp.clip(level, lowest, highest).astype(jnp.int32)
