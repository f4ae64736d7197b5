"""Operations under ``jax.shard_map`` with its default checks: as on each device alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from rois import STRIDES

from mrcnn_jax import ops

RNG = np.random.default_rng(0)
DEVICES = 4
SHARDED, REPLICATED = PartitionSpec("data"), PartitionSpec()


def random_boxes(number, size=24.0):
    corner = RNG.uniform(0, size, (DEVICES, number, 2))
    boxes = np.concatenate([corner, corner + RNG.uniform(1, size, corner.shape)], axis=-1)
    return jnp.asarray(boxes, jnp.float32)


BOXES, ROIS = random_boxes(40), random_boxes(6)
SCORES = jnp.asarray(RNG.random((DEVICES, 40)), jnp.float32)
VALID = jnp.asarray(RNG.random((DEVICES, 3)) < 0.7)
LABELS = jnp.asarray(RNG.integers(-1, 2, (DEVICES, 40)), jnp.int32)
PYRAMID = [jnp.asarray(RNG.normal(size=(DEVICES, *side, 2)), jnp.float32) for side in [(12, 16), (6, 8)]]


def one_image(function):
    """A function of one image's arrays as one of a batch of one image."""
    return lambda *arrays: jax.tree.map(lambda out: out[None], function(*(array[0] for array in arrays)))


def overlaps(boxes):
    return lambda slot: ops.iou(boxes, boxes[slot][None])[:, 0]


CASES = {
    "nms": (lambda boxes, scores: ops.nms(boxes, scores, 0.3), (BOXES, SCORES)),
    "nms in groups": (lambda *arrays: ops.nms(*arrays[:2], 0.3, None, arrays[2], 9), (BOXES, SCORES, LABELS)),
    "match": (
        lambda boxes, valid: ops.match(overlaps(boxes), 40, valid, 0.7, 0.3, allow_low_quality=True),
        (BOXES, VALID),
    ),
    "max_overlap": (lambda boxes, valid: ops.max_overlap(overlaps(boxes), 40, valid), (BOXES, VALID)),
    "sample_labels": (lambda labels: ops.sample_labels(jax.random.key(0), labels, 8, 0.5), (LABELS,)),
}


def mapped(function, specs):
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), "data")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=SHARDED))


def assert_equals_each_device(function, arrays, specs):
    def own(device):
        pairs = zip(arrays, specs, strict=True)
        return function(*(array[device : device + 1] if spec == SHARDED else array for array, spec in pairs))

    expected = jax.tree.map(lambda *parts: np.concatenate(parts), *map(own, range(DEVICES)))
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, mapped(function, specs)(*arrays), expected)


@pytest.mark.parametrize("case", CASES)
def test_of_boxes(case):
    function, arrays = CASES[case]
    assert_equals_each_device(one_image(function), arrays, (SHARDED,) * len(arrays))
    for spec in (REPLICATED, SHARDED) if len(arrays) > 1 else ():  # some arrays vary
        specs = spec, *(SHARDED if spec == REPLICATED else REPLICATED for _ in arrays[1:])
        jax.eval_shape(mapped(one_image(function), specs), *arrays)


def pool(first, second, boxes, how=("align", "average", 2), implementation="tiled"):
    levels = ops.assign_levels(boxes, 2, 3, canonical_size=16.0, canonical_level=3) - 2
    return ops.pool_rois(
        [first, second], boxes, levels, STRIDES[:2], 3, *how, implementation=implementation
    )  # fmt: skip


def test_of_rois():
    assert_equals_each_device(pool, (*PYRAMID, ROIS), (SHARDED,) * 3)


@pytest.mark.parametrize(
    "how", [("align", "average", 2), ("align", "average", 0), ("align", "max", 0), ("pool", "max", 0)]
)
def test_types_of_rois_and_gradients(how):
    """The checks are done as a program is traced."""
    for implementation in ops.roi_implementations(*how):

        def both(*arrays, implementation=implementation):
            arrays = [array[:1] for array in arrays]
            pooled, backward = jax.vjp(partial(pool, how=how, implementation=implementation), *arrays)
            return pooled, backward(pooled)[2]

        for spec in (SHARDED, REPLICATED):  # shared features
            jax.eval_shape(mapped(both, (spec, spec, SHARDED)), *PYRAMID, ROIS)
