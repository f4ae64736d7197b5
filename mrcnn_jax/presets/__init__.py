"""Named experiments: small machines first, then the paper's systems on COCO and Cityscapes."""

from mrcnn_jax.presets import small_machines  # isort: skip - listed first by `mrcnn train`
from mrcnn_jax.presets import cityscapes, coco
from mrcnn_jax.presets.registry import PRESETS, describe, get

__all__ = ["PRESETS", "cityscapes", "coco", "describe", "get", "small_machines"]
