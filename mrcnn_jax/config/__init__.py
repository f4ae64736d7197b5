"""An experiment as data: frozen dataclasses, validated where they are built.

The defaults are Mask R-CNN with ResNet-50-FPN on COCO as the paper trains it (section 3.1 and the released code), with two deliberate
deviations, each a field: RoIAlign reads features at half-pixel centres (``pool.aligned``), and proposals are kept per image rather than per
batch. Every other published system is a small ``dataclasses.replace`` of this one.
"""

from mrcnn_jax.config.experiment import DataConfig, EvaluationConfig, Experiment, TrainConfig
from mrcnn_jax.config.model import BackboneConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig, ModelConfig, PoolConfig, RoIConfig, RPNConfig
from mrcnn_jax.config.serialization import changed, from_dict, read_experiment, to_dict

__all__ = [
    "BackboneConfig", "BoxHeadConfig", "DataConfig", "EvaluationConfig", "Experiment", "KeypointHeadConfig", "MaskHeadConfig", "ModelConfig", "PoolConfig",
    "RPNConfig", "RoIConfig", "TrainConfig", "changed", "from_dict", "read_experiment", "to_dict",
]  # fmt: skip
