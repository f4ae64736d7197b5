"""Configuration of the evaluation."""

from dataclasses import dataclass
from typing import Annotated

from mrcnn_jax.config.validation import (
    MOST_BOXES,
    MOST_PICTURES,
    BatchSize,
    Fraction,
    ImageEdge,
    NonNegativeInt,
    at_most,
    check_fields,
    require,
)

MAX_SCALES = 16
"""Scales of test-time augmentation: each has programs of its own."""
_Limit = Annotated[int, at_most(MOST_BOXES)]


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation with the COCO metrics."""

    images_per_device: BatchSize = 1
    """Images per device and batch."""
    max_detections: tuple[_Limit, _Limit, _Limit] = (1, 10, 100)
    """Detections per image at which COCO's average recall is reported; average precision is at the last."""
    pictures: Annotated[NonNegativeInt, at_most(MOST_PICTURES)] = 16
    """Images of the contact sheet predictions.png (.jpg if larger than 3 MB); 0 draws none."""
    picture_score: Fraction = 0.5
    """Minimum score of detections that are drawn."""
    tta_scales: tuple[ImageEdge, ...] = ()
    """Test-time augmentation: lengths of the shorter image edge, in pixels, at which each image (or tile) is
    seen, up to 16; data.long_edge changes with them, and what is found is merged. None sees it once, at
    data.short_edge_test."""
    tta_flip: bool = False
    """Test-time augmentation: see each image (or tile) mirrored too, at every scale."""

    def __post_init__(self):
        check_fields("evaluation", self)
        scales = self.tta_scales
        require(len(set(scales)) == len(scales) <= MAX_SCALES,
                f"evaluation.tta_scales must be up to {MAX_SCALES} different lengths, not {scales}")
        require(list(self.max_detections) == sorted(self.max_detections) and self.max_detections[0] > 0,
                f"evaluation.max_detections must increase from at least 1, not {self.max_detections}")
