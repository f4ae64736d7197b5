"""Choices in which detection libraries differ without a reason that users care about, as one dataclass with
four named settings."""

from dataclasses import dataclass, replace
from typing import Literal

from mrcnn_jax.config.validation import NonNegativeFloat, NonNegativeInt, check_fields


@dataclass(frozen=True)
class Conventions:
    """Rules for images, anchors, RoIs, targets and results where libraries differ by rounding, offsets
    or normalisers.

    The defaults are this project's (``OURS``). Weights of another library need that library's; importing
    weights sets them.
    """

    resize: Literal["area", "antialiased", "bilinear"] = "area"
    """Interpolation of images: area averages when it shrinks (OpenCV); antialiased is Pillow's bilinear
    (Detectron2); bilinear does not round to whole levels (torchvision)."""
    size_rounding: Literal["nearest", "down"] = "nearest"
    """Rounding of the resized height and width: nearest (Detectron2) or down (torchvision)."""
    anchor_rounding: Literal["none", "corners", "sides"] = "none"
    """Rounding of anchors: none (Detectron2); corners to whole pixels around the origin (torchvision); sides
    of the anchor as large as a cell, before it is scaled (Detectron)."""
    anchor_offset: float = 0.0
    """Offset of an anchor's centre from the corner of its cell, in cells: 0 (torchvision, Detectron2) or 0.5
    (Detectron)."""
    anchor_strides: Literal["level", "grid"] = "level"
    """Distance between anchors: level is the stride of the feature map; grid is the side of the padded image
    over that of the map, in whole pixels (torchvision; less on a P6 whose size was rounded up)."""
    rpn_normalizer: Literal["nominal", "actual"] = "nominal"
    """Divisor of the RPN losses: the nominal rpn.samples_per_image (Detectron2), or the actual number of
    sampled anchors (torchvision)."""
    roi_half_pixel: bool = True
    """RoIAlign subtracts half a cell, so that features are read where they are (Detectron2's ROIAlignV2);
    False is the paper's released code and torchvision."""
    roi_inclusive: bool = False
    """RoIs end in the middle of their last pixel, one pixel before their box does (Detectron, whose boxes
    include the last pixel)."""
    level_epsilon: NonNegativeFloat = 1e-6
    """Added to a RoI's pyramid level before it is rounded down: 1e-6 (torchvision) or 0 (Detectron2)."""
    mask_target_sampling_ratio: NonNegativeInt = 2
    """Samples per bin and axis with which a mask target is cropped; 0 takes as many as the bin has cells
    (torchvision, Detectron2)."""
    mask_target_half_pixel: bool = True
    """Mask targets are aligned with the mask; False shifts them by half a cell (torchvision)."""
    soft_mask_targets: bool = False
    """Mask targets are fractions of their bins (torchvision) instead of 0 or 1."""
    mask_paste: Literal["exact", "integer"] = "exact"
    """Masks are pasted into their real-valued box (Detectron2), or into whole pixels (Detectron,
    torchvision)."""
    keypoint_score: Literal["probability", "logit"] = "probability"
    """Score of a detected keypoint: its softmax probability (Detectron2) or its logit (torchvision)."""

    def __post_init__(self):
        check_fields("conventions", self)


OURS = Conventions()
"""This project's own conventions."""
TORCHVISION = Conventions(
    resize="bilinear", size_rounding="down", anchor_rounding="corners", anchor_strides="grid",
    rpn_normalizer="actual", roi_half_pixel=False, mask_target_sampling_ratio=0, mask_target_half_pixel=False,
    soft_mask_targets=True, mask_paste="integer", keypoint_score="logit",
)  # fmt: skip
"""torchvision's detection models."""
DETECTRON2 = Conventions(resize="antialiased", level_epsilon=0.0, mask_target_sampling_ratio=0)
"""Detectron2, with ROIAlignV2."""
DETECTRON = replace(
    DETECTRON2, resize="bilinear", anchor_rounding="sides", anchor_offset=0.5, roi_half_pixel=False,
    roi_inclusive=True, mask_paste="integer",
)  # fmt: skip
"""The original Detectron."""
