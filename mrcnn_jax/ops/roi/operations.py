"""RoIAlign, RoIPool and RoIWarp by name: what each reads, and the forms in which it can be computed."""

import jax
import jax.numpy as jnp

from mrcnn_jax.ops.roi import dispatch as roi_dispatch
from mrcnn_jax.ops.roi.sampling import Reading, round_half_away
from mrcnn_jax.ops.roi.tiles import Maps, Rois
from mrcnn_jax.typing import Array, Float


def operate(
    operation: str, reduction: str, samples: int, aligned: bool, bins: int | tuple[int, int], form: str | None, maps: Maps, rois: Rois
) -> Float[Array, "N PH PW C"]:
    """One of the operations on RoIs in cells of their maps; see ``pool_rois``."""
    reading = _reading(operation, reduction, samples, aligned, bins)
    if form is not None and form not in roi_dispatch.forms(reading):
        raise ValueError(f"the form of this operation must be {', '.join(map(repr, roi_dispatch.forms(reading)))} or None, not {form!r}")
    if rois.boxes.shape[0] == 0:
        return jnp.zeros((0, *reading.bins, maps[0].shape[-1]), maps[0].dtype)
    if operation == "warp":
        rois = rois._replace(boxes=jax.lax.stop_gradient(round_half_away(rois.boxes)))
    return roi_dispatch.read(reading, form, maps, rois)


def roi_implementations(operation: str, reduction: str = "average", sampling_ratio: int = 2) -> tuple[str, ...]:
    """The forms that compute an operation, as ``form`` of ``pool_rois``, ``roi_align``, ``roi_pool`` and ``roi_warp`` takes them.

    - "gather": reads cell by cell from all maps as one table, all RoIs at once; its gradient is scattered.
    - "sorted": the same, but what is scattered is sorted by cell first. For averages of fixed numbers of samples.
    - "pieces": reads cell by cell, map by map and so many RoIs at a time that what they need stays in a CPU's cache.
    - "matmul": two products with matrices of weights for each RoI, forwards and backwards. For averages.
    """
    return roi_dispatch.forms(_reading(operation, reduction, sampling_ratio, True, 1))


def default_implementation(operation: str, reduction: str = "average", sampling_ratio: int = 2, platform: str | None = None) -> str:
    """The form that an operation takes on "cpu", "gpu" or "tpu" when none is asked for; without a platform, on jax's default one."""
    return roi_dispatch.default(_reading(operation, reduction, sampling_ratio, True, 1), platform or jax.default_backend())


def _reading(operation, reduction, samples, aligned, bins):
    bins = (bins, bins) if isinstance(bins, int) else tuple(bins)
    if operation not in ("align", "pool", "warp"):
        raise ValueError(f'operation must be "align", "pool" or "warp", not {operation!r}')
    if operation == "pool":
        if reduction != "max":
            raise ValueError(f'RoIPool has the reduction "max" only, not {reduction!r}')
        return Reading("cells", bins)
    if reduction not in ("average", "max") or samples < 0:
        raise ValueError(f'RoIAlign and RoIWarp take the "average" or "max" of at least 0 samples, not {reduction!r} of {samples}')
    return Reading(reduction, bins, samples, aligned and operation == "align")
