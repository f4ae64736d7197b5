"""The detectors' networks as Flax Linen modules, imported on first use.

- ``MaskRCNN``, ``FCIS`` and ``MNC`` are the systems, ``make_model`` returns the one of a configuration.
- ``init_variables`` returns its initial parameters.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrcnn_jax.models.fcis import FCIS
    from mrcnn_jax.models.mask_rcnn import MaskRCNN
    from mrcnn_jax.models.mnc import MNC
    from mrcnn_jax.models.systems import init_variables, make_model

_MODULES = {
    "FCIS": "fcis", "MNC": "mnc", "MaskRCNN": "mask_rcnn", "init_variables": "systems",
    "make_model": "systems",
}  # fmt: skip
__all__ = ["FCIS", "MNC", "MaskRCNN", "init_variables", "make_model"]


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
