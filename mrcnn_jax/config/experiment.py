"""An experiment: model, data, training and evaluation together."""

from dataclasses import dataclass, field

from mrcnn_jax.config.data import DataConfig
from mrcnn_jax.config.evaluation import EvaluationConfig
from mrcnn_jax.config.model import ModelConfig
from mrcnn_jax.config.train import TrainConfig
from mrcnn_jax.config.validation import check_fields, require


@dataclass(frozen=True)
class Experiment:
    """The complete configuration of a run."""

    name: str = "mask_rcnn_r50_fpn"
    """Name of the experiment, for logs and titles."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self):
        check_fields("experiment", self)
        pyramid, divisor = self.model.backbone.features == "fpn", self.data.padding_divisor
        require(not pyramid or divisor % 32 == 0,
                "data.padding_divisor must be 0 or a multiple of 32 with model.backbone.features fpn, not "
                f"{divisor}")
        model, augmented = self.model, self.evaluation.tta_flip or bool(self.evaluation.tta_scales)
        require(not augmented or bool(model.tasks),
                "evaluation.tta_flip and evaluation.tta_scales need model.tasks: a region proposal network "
                "alone has no test-time augmentation")
