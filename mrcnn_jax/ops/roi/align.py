"""RoIAlign (Mask R-CNN, section 3): bilinear samples at regular positions in each bin, without rounding."""

from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi.bins import clip_coordinates
from mrcnn_jax.ops.roi.gather import accumulation_dtype
from mrcnn_jax.ops.roi.implementations import pool_one_map
from mrcnn_jax.ops.roi.spec import PoolSpec, make_spec
from mrcnn_jax.typing import Array, Float


def align_by_definition(
    features: Float[Array, "H W C"], boxes: Float[Array, "N 4"], spec: PoolSpec
) -> Float[Array, "N PH PW C"]:
    """Computes RoIAlign of boxes in cells, for a fixed sampling ratio S, as the paper defines it."""
    height, width, channels = features.shape
    x1, y1, x2, y2 = (clip_coordinates(boxes) - (0.5 if spec.half_pixel else 0.0)).T
    box_height, box_width = y2 - y1, x2 - x1
    if not spec.half_pixel:
        box_height, box_width = jnp.maximum(box_height, 1.0), jnp.maximum(box_width, 1.0)
    y = _sample_positions(y1, box_height, spec.output_size[0], spec.sampling_ratio)[:, :, None, :, None]
    x = _sample_positions(x1, box_width, spec.output_size[1], spec.sampling_ratio)[:, None, :, None, :]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)  # [N, PH, PW, S, S]

    y, x = jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)
    down, across = (y - jnp.floor(y))[..., None], (x - jnp.floor(x))[..., None]
    top, left = jnp.floor(y).astype(jnp.int32), jnp.floor(x).astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    cells = features.astype(accumulation_dtype(features.dtype))
    upper = (1 - across) * cells[top, left] + across * cells[top, right]
    lower = (1 - across) * cells[bottom, left] + across * cells[bottom, right]
    samples = jnp.where(inside[..., None], (1 - down) * upper + down * lower, 0)

    samples = samples.reshape(len(boxes), *spec.output_size, spec.sampling_ratio**2, channels)
    if spec.reduction == "average":
        pooled = samples.mean(axis=3)
    else:  # the gradient goes to the first largest sample
        pooled = jnp.take_along_axis(samples, samples.argmax(axis=3, keepdims=True), axis=3)[:, :, :, 0]
    return pooled.astype(features.dtype)


def _sample_positions(start, size, bins, sampling_ratio):
    """Positions in cells along one axis, [N, bins, sampling_ratio]."""
    index = (jnp.arange(bins * sampling_ratio, dtype=start.dtype) + 0.5).reshape(1, bins, sampling_ratio)
    return start[:, None, None] + index * (size / (bins * sampling_ratio))[:, None, None]


@partial(
    jax.jit,
    static_argnames=(
        "output_size",
        "spatial_scale",
        "sampling_ratio",
        "half_pixel",
        "reduction",
        "implementation",
    ),
)
def roi_align(
    features: Float[Array, "*B H W C"],
    boxes: Float[Array, "N _"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    half_pixel: bool = True,
    reduction: str = "average",
    implementation: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """Pools RoIs from the feature map of one image, or of several, by RoIAlign.

    Samples more than one cell outside the map are 0, as in Detectron, and count; those less far outside read
    the border. Features below float32 are weighted and summed in float32 ("matmul" weights in their own
    precision).

    Reverse-mode differentiable in features and boxes; a maximum through its first largest sample. Forward
    mode and second derivatives (``jax.jvp``, ``jax.jacfwd``, ``jax.hessian``) need
    ``implementation="reference"``.

    Args:
        features: of one image, [H, W, C], or of several, [B, H, W, C], channels last.
        boxes: RoIs in image pixels: [N, 4], x1, y1, x2, y2; or for several images [N, 5], as in torchvision,
            with the image's index first (the nearest if there is none of this index). NaN coordinates count
            as 0, and those beyond 2**20 cells as that.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature cells per image pixel.
        sampling_ratio: samples per bin and axis. 0 is adaptive: ceil(RoI size in cells / bins), so that
            samples are at most one cell apart, as in torchvision and Detectron2. With ``half_pixel``, a RoI
            without height or width then has no samples, and its bins are 0.
        half_pixel: reads image coordinate x at feature coordinate x * spatial_scale - 0.5, as the value of a
            cell lies at its centre (Detectron2's ROIAlignV2, torchvision's aligned=True). False follows the
            original code: no half pixel, and RoIs at least one cell wide.
        reduction: "average" or "max" over the samples of a bin, channel by channel (table 2c compares them).
        implementation: one of ``roi_implementations``; None is the default of the platform.

    Returns:
        The pooled features, in the dtype of the features.

    Raises:
        ValueError: for a shape, reduction, sampling ratio or implementation that is not allowed.

    References:
        He et al., "Mask R-CNN", 2017, section 3.
    """
    spec = make_spec("align", reduction, sampling_ratio, half_pixel, output_size)
    return pool_one_map(spec, align_by_definition, implementation, features, boxes, spatial_scale)
