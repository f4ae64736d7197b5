"""Named experiments: small machines first, then the paper's systems on COCO and Cityscapes, then
recipes after the paper."""

from mrcnn_jax.presets import small_machines  # isort: skip - listed first by `mrcnn train`
from mrcnn_jax.presets import cityscapes, coco, fcis, mnc, recipes
from mrcnn_jax.presets.registry import PRESETS, describe, fine_tune, get, resolve, stored_run, suggest

__all__ = [
    "PRESETS", "cityscapes", "coco", "describe", "fcis", "fine_tune", "get", "mnc", "recipes", "resolve",
    "small_machines", "stored_run", "suggest",
]  # fmt: skip
