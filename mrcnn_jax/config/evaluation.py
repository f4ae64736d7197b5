"""Configuration of the evaluation."""

from dataclasses import dataclass

from mrcnn_jax.config.validation import Fraction, NonNegativeInt, PositiveInt, check_fields, require


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation with the COCO metrics."""

    images_per_device: PositiveInt = 1
    """Images per device and batch."""
    max_detections: tuple[int, int, int] = (1, 10, 100)
    """Detections per image at which COCO's average recall is reported; average precision is at the last."""
    pictures: NonNegativeInt = 16
    """Images of the contact sheet predictions.png (.jpg if larger than 3 MB); 0 draws none."""
    picture_score: Fraction = 0.5
    """Minimum score of detections that are drawn."""

    def __post_init__(self):
        check_fields("evaluation", self)
        require(list(self.max_detections) == sorted(self.max_detections) and self.max_detections[0] > 0,
                f"evaluation.max_detections must increase from at least 1, not {self.max_detections}")
