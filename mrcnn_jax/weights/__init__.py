"""Weights of other libraries: published ones by name, import, export.

Names are imported on first use, as in ``mrcnn_jax``: the catalogue of published weights does without JAX.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrcnn_jax.weights.import_export import export_weights, import_weights

__all__ = ["export_weights", "import_weights"]


def __getattr__(name: str):
    if name in __all__:
        from mrcnn_jax.weights import import_export

        return getattr(import_export, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
