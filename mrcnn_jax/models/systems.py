"""The systems by name, and their initial variables."""

from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.fcis import FCIS
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.mnc import MNC
from mrcnn_jax.models.two_stage import TwoStage
from mrcnn_jax.typing import PRNGKeyArray

SYSTEMS: dict[str, type[TwoStage]] = {"mask_rcnn": MaskRCNN, "fcis": FCIS, "mnc": MNC}
"""Modules by model.system."""


def make_model(config: ModelConfig, dtype: Any = jnp.float32, remat: bool = False) -> TwoStage:
    """Returns the module of a configuration.

    Args:
        config: names the system, "mask_rcnn", "fcis" or "mnc".
        dtype: see ``TwoStage``.
        remat: likewise.
    """
    return SYSTEMS[config.system](config, dtype, remat)


def init_variables(model: TwoStage, key: PRNGKeyArray) -> dict[str, Any]:
    """Returns initial variables: "params" and, by the kind of normalisation, "frozen" or "batch_stats"."""
    return jitted_init(model)(key)


@lru_cache(maxsize=16)
def jitted_init(model: TwoStage) -> jax.stages.Wrapped:
    """Returns ``init_variables`` of a model as a jitted function of the key, the same for equal models."""
    return jax.jit(nn.init(type(model).init_layers, model))
