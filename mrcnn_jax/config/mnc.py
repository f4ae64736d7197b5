"""Configuration of multi-task network cascades (MNC)."""

from dataclasses import dataclass

from mrcnn_jax.config.validation import Fraction, NonNegativeFloat, PositiveFloat, check_fields, require


@dataclass(frozen=True)
class MNCConfig:
    """Cascade of Dai et al. (2016): proposals, a mask of each, its class; then both again for the regressed
    boxes."""

    training_stages: int = 5
    """Stages in training: 5 has losses of the regressed boxes' masks and classes too, 3 ends before.
    Inference always has all five."""
    share_res5: bool = False
    """One res5 for the RoIs' features and for their masked features, instead of one for each."""
    mask_loss_weight: PositiveFloat = 1.0
    """Weight of the mask loss: 1 in the paper, 2 in the released code."""
    mask_iou: Fraction = 0.5
    """Minimum IoU of a predicted mask with its object's from which the RoI is foreground for the classifier
    of masks."""
    gradient_clip: NonNegativeFloat = 1 / 512
    """Largest gradient of one image's loss that a box passes to each of the deltas it was decoded with
    (released code); 0 does not clip."""
    voting_iou: Fraction = 0.5
    """Minimum IoU of an instance with a detection for its mask to vote (mask voting)."""
    binarize_votes: bool = False
    """Masks vote as 0 or 1, by mask.threshold, instead of by their probabilities."""

    def __post_init__(self):
        check_fields("mnc", self)
        require(self.training_stages in (3, 5),
                f"mnc.training_stages must be 3 or 5, not {self.training_stages}")
