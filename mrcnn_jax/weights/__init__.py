"""Imports weights of torchvision, Detectron2 and the original Detectron; exports weights to torchvision."""

from mrcnn_jax.weights.import_export import export_weights, import_weights

__all__ = ["export_weights", "import_weights"]
