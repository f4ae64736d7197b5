"""Configuration of FCIS (Li et al., 2017)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mrcnn_jax.config.validation import (
    Channels,
    Fraction,
    PositiveFloat,
    PositiveInt,
    at_most,
    check_fields,
    require,
)


@dataclass(frozen=True)
class FCISConfig:
    """Position-sensitive score maps from which class, box and mask of a RoI are pooled, without a head per
    RoI. Other fields, such as model.box.nms_iou or model.roi.samples_per_image, mean what they mean for Mask
    R-CNN."""

    channels: Channels = 1024
    """Channels of the 1x1 convolution between res5 and the score maps."""
    groups: Annotated[PositiveInt, at_most(64)] = 7
    """Score maps along each side of a RoI (k): each is read in its part of the RoI only."""
    size: Annotated[PositiveInt, at_most(512)] = 21
    """Bins along each side of a RoI, which is the side of its mask; a multiple of groups."""
    pooling: Literal["ps_roi_pool", "ps_roi_align"] = "ps_roi_pool"
    """Position-sensitive RoI operation: ps_roi_pool averages whole cells of rounded RoIs (FCIS); ps_roi_align
    averages bilinear samples, as many as model.pool.sampling_ratio says."""
    joint_maps: bool = True
    """Class scores and masks from the same maps: their maximum and their softmax. Otherwise the first of each
    pair of maps is for class scores alone, the second for masks alone."""
    sampling: Literal["hard", "random"] = "hard"
    """RoIs that are trained on: the model.roi.samples_per_image of greatest loss among all (online hard
    example mining), or as many sampled at random."""
    mask_loss_weight: PositiveFloat = 10.0
    """Weight of the mask loss, a mean over pixels: 10 in the released code, 1 in the paper."""
    passes: Annotated[PositiveInt, at_most(10)] = 2
    """Passes at inference: each after the first pools the boxes that the one before regressed; the instances
    of all of them vote."""
    voting_iou: Fraction = 0.5
    """Minimum IoU of an instance with a detection for its mask to vote (mask voting)."""
    binarize_votes: bool = True
    """Masks vote as 0 or 1, by mask.threshold, instead of by their probabilities."""
    rate_factor: PositiveFloat = 3.0
    """Factor of the learning rate of the convolution between res5 and the score maps."""

    def __post_init__(self):
        check_fields("fcis", self)
        require(self.size % self.groups == 0,
                f"fcis.size must be a multiple of fcis.groups {self.groups}, not {self.size}")
