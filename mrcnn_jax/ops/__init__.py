"""Operations of object detection as pure functions of arrays, independent of models and configurations.

Boxes are (x1, y1, x2, y2) in pixels, continuous coordinates (``mrcnn_jax.structures``).
"""

from mrcnn_jax.ops.anchors import best_anchor_iou, cell_anchors, grid_anchors, pyramid_anchors
from mrcnn_jax.ops.boxes import (
    area,
    clip,
    decode,
    encode,
    giou,
    intersection,
    intersection_over_area,
    iou,
    is_nonempty,
)
from mrcnn_jax.ops.gradient_clip import clip_gradient
from mrcnn_jax.ops.keypoints import decode_keypoints, keypoint_targets
from mrcnn_jax.ops.mask_voting import vote_masks
from mrcnn_jax.ops.masks import crop_masks, mask_iou, masks_to_boxes
from mrcnn_jax.ops.matching import match, max_overlap
from mrcnn_jax.ops.nms import masked_top_k, nms
from mrcnn_jax.ops.roi.align import roi_align
from mrcnn_jax.ops.roi.implementations import default_implementation, roi_implementations
from mrcnn_jax.ops.roi.levels import assign_levels
from mrcnn_jax.ops.roi.pool import roi_pool
from mrcnn_jax.ops.roi.position_sensitive import ps_roi_align, ps_roi_pool
from mrcnn_jax.ops.roi.pyramid import pool_rois
from mrcnn_jax.ops.roi.warp import roi_warp
from mrcnn_jax.ops.sampling import hard_examples, sample_labels
from mrcnn_jax.ops.soft_nms import soft_nms

__all__ = [
    "area", "assign_levels", "best_anchor_iou", "cell_anchors", "clip", "clip_gradient", "crop_masks",
    "decode", "decode_keypoints", "default_implementation", "encode", "giou", "grid_anchors",
    "hard_examples", "intersection", "intersection_over_area", "iou", "is_nonempty", "keypoint_targets",
    "mask_iou", "masked_top_k", "masks_to_boxes", "match", "max_overlap", "nms", "pool_rois",
    "ps_roi_align", "ps_roi_pool", "pyramid_anchors", "roi_align", "roi_implementations", "roi_pool",
    "roi_warp", "sample_labels", "soft_nms", "vote_masks",
]  # fmt: skip
