"""The operations of detection as pure functions of arrays; they know of no model and no configuration."""

from mrcnn_jax.ops.anchors import cell_anchors, grid_anchors, pyramid_anchors
from mrcnn_jax.ops.boxes import area, clip, decode, encode, intersection, intersection_over_second, iou, nonempty
from mrcnn_jax.ops.keypoints import decode_keypoints, keypoint_targets
from mrcnn_jax.ops.masks import crop_masks
from mrcnn_jax.ops.matching import greatest_overlap, match, sample
from mrcnn_jax.ops.nms import nms, top_k_of
from mrcnn_jax.ops.paste import paste_masks
from mrcnn_jax.ops.roi_align import roi_align
from mrcnn_jax.ops.roi_features import assign_levels, pool_rois
from mrcnn_jax.ops.roi_operations import default_form, roi_forms
from mrcnn_jax.ops.roi_pool import roi_pool
from mrcnn_jax.ops.roi_warp import roi_warp

__all__ = [
    "area", "assign_levels", "cell_anchors", "clip", "crop_masks", "decode", "decode_keypoints", "default_form", "encode", "greatest_overlap", "grid_anchors",
    "intersection", "intersection_over_second", "iou", "keypoint_targets", "match", "nms", "nonempty", "paste_masks", "pool_rois",
    "pyramid_anchors", "roi_align", "roi_forms", "roi_pool", "roi_warp", "sample", "top_k_of",
]  # fmt: skip
