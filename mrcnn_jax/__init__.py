"""Mask R-CNN in JAX and Flax: boxes, classes and masks of objects, from a laptop to a TPU pod.

``load(directory)`` gives a detector, ``detector(image)`` its detections; ``import_weights`` and ``export_weights`` exchange weights with other
libraries; ``mrcnn_jax.ops`` holds the operations.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["export_weights", "import_weights", "load", "ops"]

if TYPE_CHECKING:
    from mrcnn_jax import ops
    from mrcnn_jax.inference.detector import load
    from mrcnn_jax.weights import export_weights, import_weights


def __getattr__(name: str):
    # on first use: a bare accelerator machine may lack what a detector needs, and the command line's --help should not wait for jax
    if name == "ops":
        import importlib

        return importlib.import_module("mrcnn_jax.ops")
    if name in ("export_weights", "import_weights"):
        from mrcnn_jax import weights

        return getattr(weights, name)
    if name == "load":
        from mrcnn_jax.inference.detector import load

        return load
    raise AttributeError(f"module 'mrcnn_jax' has no attribute {name!r}")
