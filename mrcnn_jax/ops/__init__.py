"""The operations of detection as pure functions of arrays; they know of no model and no configuration."""

from mrcnn_jax.inference.paste import paste_masks
from mrcnn_jax.ops.anchors import cell_anchors, grid_anchors, pyramid_anchors
from mrcnn_jax.ops.boxes import (
    area,
    clip,
    decode,
    encode,
    intersection,
    intersection_over_area,
    iou,
    is_nonempty,
)
from mrcnn_jax.ops.keypoints import decode_keypoints, keypoint_targets
from mrcnn_jax.ops.masks import crop_masks
from mrcnn_jax.ops.matching import match, max_overlap, sample
from mrcnn_jax.ops.nms import masked_top_k, nms
from mrcnn_jax.ops.roi.align import roi_align
from mrcnn_jax.ops.roi.levels import assign_levels, pool_rois
from mrcnn_jax.ops.roi.operations import default_implementation, roi_implementations
from mrcnn_jax.ops.roi.pool import roi_pool
from mrcnn_jax.ops.roi.warp import roi_warp

__all__ = [
    "area", "assign_levels", "cell_anchors", "clip", "crop_masks", "decode", "decode_keypoints", "default_form", "encode", "greatest_overlap", "grid_anchors",
    "intersection", "intersection_over_second", "iou", "keypoint_targets", "match", "nms", "nonempty", "paste_masks", "pool_rois",
    "pyramid_anchors", "roi_align", "roi_forms", "roi_pool", "roi_warp", "sample", "top_k_of",
]  # fmt: skip
