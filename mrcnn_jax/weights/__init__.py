"""Weights of torchvision, Detectron2 and the original Detectron, in; and out again, to torchvision."""

from mrcnn_jax.weights.import_export import export_weights, import_weights

__all__ = ["export_weights", "import_weights"]
