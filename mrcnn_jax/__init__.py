"""Mask R-CNN in JAX and Flax: boxes, classes, masks and keypoints of objects, from a laptop to a TPU pod.

Names are imported on first use, so that importing the package takes milliseconds.

- ``prepare(folder)`` converts images and annotations into a data set to train on.
- ``train(experiment, directory)`` trains an ``Experiment``; ``presets`` has named ones, ``config`` their
  parts.
- ``Logger`` is the interface of callbacks that get the metrics of a run.
- ``load(directory)`` returns a detector; ``detector(image)`` returns ``Detections``.
- ``evaluate(directory)`` computes the COCO metrics; ``predict_files(directory, images, out)`` draws
  detections.
- ``export(directory, out)`` writes a detector as StableHLO or ONNX; ``load(out)`` reads it.
- ``import_weights`` and ``export_weights`` exchange weights with torchvision, Detectron2 and Detectron.
- ``ops`` and ``models`` hold the operations (pure functions of arrays) and the networks (Flax Linen).

An experiment is a frozen dataclass, to be changed with ``dataclasses.replace``:

>>> import mrcnn_jax
>>> from dataclasses import replace
>>> demo = mrcnn_jax.presets.get("demo")
>>> short = replace(demo, train=replace(demo.train, steps=20, decay_steps=()))
>>> short.train.steps, short.model.backbone.name
(20, 'resnet18')

Operations accept NumPy and JAX arrays; boxes are (x1, y1, x2, y2) in pixels:

>>> import numpy as np
>>> boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 2], [8, 8, 9, 9]])
>>> mrcnn_jax.ops.iou(boxes, boxes)[0].tolist()
[1.0, 0.5, 0.0]
>>> mrcnn_jax.ops.roi_align(np.ones((8, 8, 1), np.float32), boxes[:1] * 2, output_size=2)[0, :, :, 0].tolist()
[[1.0, 1.0], [1.0, 1.0]]
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from mrcnn_jax.runtime import set_xla_flags as _set_xla_flags

if TYPE_CHECKING:
    from mrcnn_jax import config, models, ops, presets
    from mrcnn_jax.config import Experiment
    from mrcnn_jax.data.prepare import prepare
    from mrcnn_jax.detections import Detections
    from mrcnn_jax.inference.detector import load
    from mrcnn_jax.inference.evaluate import evaluate
    from mrcnn_jax.inference.export.export import export
    from mrcnn_jax.inference.predict import predict_files
    from mrcnn_jax.training.loggers import Logger
    from mrcnn_jax.training.loop import train
    from mrcnn_jax.weights import export_weights, import_weights

__version__ = "0.1.0"

_MODULES = {
    "Detections": "detections", "Experiment": "config", "Logger": "training.loggers",
    "evaluate": "inference.evaluate", "export": "inference.export.export", "export_weights": "weights",
    "import_weights": "weights", "load": "inference.detector", "predict_files": "inference.predict",
    "prepare": "data.prepare", "train": "training.loop",
}  # fmt: skip
_SUBPACKAGES = ("config", "models", "ops", "presets")
__all__ = [
    "Detections", "Experiment", "Logger", "config", "evaluate", "export", "export_weights", "import_weights",
    "load", "models", "ops", "predict_files", "prepare", "presets", "train",
]  # fmt: skip

_set_xla_flags()  # before a device is used


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return _import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
