"""RoIAlign (Mask R-CNN, section 3): bilinear reading of features at regularly spaced points of each RoI, nothing quantised."""

from functools import partial

import jax

from mrcnn_jax.ops.roi.levels import on_one_map
from mrcnn_jax.ops.roi.operations import operate
from mrcnn_jax.typing import Array, Float


@partial(jax.jit, static_argnames=("output_size", "spatial_scale", "sampling_ratio", "aligned", "reduction", "form"))
def roi_align(
    features: Float[Array, "H W C"],
    boxes: Float[Array, "N 4"],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    reduction: str = "average",
    form: str | None = None,
) -> Float[Array, "N PH PW C"]:
    """RoIAlign from one feature map.

    Args:
        features: one image's features, channels last.
        boxes: RoIs in image pixels; farther than 2**20 cells from the map's origin they end there.
        output_size: bins along y and x, or one number for both.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin and axis. 0 is adaptive: ceil(size in cells / bins), so that samples lie at most one cell apart, as in
            torchvision and Detectron2. An aligned RoI without height or width then has no samples, and its bins are 0.
        aligned: image coordinate x is read at feature coordinate x * spatial_scale - 0.5, where a cell's value lies at its centre
            (Detectron2's ROIAlignV2). False is the original code's reading: no half pixel, and RoIs at least one feature pixel wide.
        reduction: "average" or "max" over the samples of a bin, channel by channel (table 2c compares them).
        form: how it is computed, see ``roi_forms``; None is what is fastest on the platform. All give the same numbers but for rounding.
    Samples more than one cell outside the map read 0, as in Detectron, and these 0 count; those less far outside read the border.

    Differentiable in features and boxes; the maximum through its first largest sample. Features in less than float32 are weighted and added up in float32
    (by "matmul": weighted in their own precision). Raises ValueError for a reduction or form that does not exist, or a negative number of samples.
    """
    return operate("align", reduction, sampling_ratio, aligned, output_size, form, *on_one_map(features, boxes, spatial_scale))
