"""Experiments as data: frozen dataclasses, validated where they are built.

The defaults are Mask R-CNN with ResNet-50-FPN on COCO as the paper trains it (section 3.1 and the released
code), with two deliberate deviations: RoIAlign samples features at half-pixel centres
(``conventions.roi_half_pixel``), and proposals are selected per image rather than per batch. Every other
published system is a small ``dataclasses.replace`` of this one.
"""

from mrcnn_jax.config.augmentation import AUGMENTATIONS, Augmentation, AugmentationConfig
from mrcnn_jax.config.conventions import DETECTRON, DETECTRON2, OURS, TORCHVISION, Conventions
from mrcnn_jax.config.data import DataConfig
from mrcnn_jax.config.evaluation import EvaluationConfig
from mrcnn_jax.config.experiment import Experiment
from mrcnn_jax.config.fcis import FCISConfig
from mrcnn_jax.config.heads import (
    BoxHeadConfig,
    BranchPoolConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    PoolConfig,
    RoIConfig,
    RoIPooling,
)
from mrcnn_jax.config.mnc import MNCConfig
from mrcnn_jax.config.model import BackboneConfig, ModelConfig, RPNConfig
from mrcnn_jax.config.serialization import from_dict, read_experiment, structure, to_dict, with_changes
from mrcnn_jax.config.train import TrainConfig

__all__ = [
    "AUGMENTATIONS", "DETECTRON", "DETECTRON2", "OURS", "TORCHVISION", "Augmentation", "AugmentationConfig",
    "BackboneConfig", "BoxHeadConfig", "BranchPoolConfig", "Conventions", "DataConfig", "EvaluationConfig",
    "Experiment", "FCISConfig", "KeypointHeadConfig", "MNCConfig", "MaskHeadConfig", "ModelConfig",
    "PoolConfig", "RPNConfig", "RoIConfig", "RoIPooling", "TrainConfig", "from_dict", "read_experiment",
    "structure", "to_dict", "with_changes",
]  # fmt: skip
