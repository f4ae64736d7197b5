"""Every preset's training step traces at full size."""

import jax
import pytest

from benchmarks.model._synthetic import make_step, standalone, synthetic_batch
from experiments.recipes import FACTS
from mrcnn_jax import presets

FAST = ("keypoint_rcnn_r50_fpn", "mask_rcnn_r50_c4")
"""Presets with different structures; the others are traced in the slow tier."""
TRACED = [
    name for name in presets.PRESETS
    if name not in FACTS or name in ("mask_rcnn_r50_fpn_100ep", "mask_rcnn_r50_fpn_v2")
]  # fmt: skip
"""Without most recipes, whose structures others have."""


def shapes_and_dtypes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TRACED]
)
def test_training_step_traces_at_full_size(name):
    experiment = standalone(presets.get(name))
    step, make_state = make_step(experiment, jax.devices()[:1])
    state = jax.eval_shape(make_state)
    after, metrics = jax.eval_shape(step, state, synthetic_batch(experiment, devices=1, objects=2))
    assert shapes_and_dtypes(after) == shapes_and_dtypes(state)
    assert {metric.shape for metric in metrics.values()} == {()}
