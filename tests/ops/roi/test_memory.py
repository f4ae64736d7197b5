"""Temporary memory of the default implementations, as the compiler counts it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.roi._workloads import WORKLOADS
from mrcnn_jax import ops

KINDS = [
    ("align", "average", 2),
    ("align", "average", 0),
    ("align", "max", 2),
    ("align", "max", 0),
    ("pool", "max", 2),
]


@pytest.mark.parametrize(
    "name, kind",
    [
        ("FPN box training", KINDS[0]),
        ("FPN mask training", KINDS[0]),
        *[("FPN inference", kind) for kind in KINDS],
    ],
)
def test_temporary_memory_is_below_twice_the_bins_and_the_pyramid(name, kind):
    workload, (operation, reduction, samples) = WORKLOADS[name], kind
    shapes = [jax.ShapeDtypeStruct((1, *side, workload.channels), jnp.float32) for side in workload.maps]
    boxes = jax.ShapeDtypeStruct((1, workload.rois, 4), jnp.float32)
    levels = jax.ShapeDtypeStruct((1, workload.rois), jnp.int32)
    pool = jax.jit(
        lambda *given: ops.pool_rois(*given, workload.strides, workload.bins, operation, reduction, samples)
    )
    memory = pool.lower(shapes, boxes, levels).compile().memory_analysis()
    pyramid = sum(4 * np.prod(shape.shape) for shape in shapes)
    assert memory.temp_size_in_bytes < 2 * memory.output_size_in_bytes + pyramid


def test_a_convolution_of_the_bins_does_not_keep_the_cells_they_sample():
    rois, bins, channels = 64, 14, 64

    def loss(kernel, features, boxes):
        pooled = ops.roi_align(features, boxes, bins)
        numbers = ("NHWC", "HWIO", "NHWC")
        convolved = jax.lax.conv_general_dilated(pooled, kernel, (2, 2), "SAME", dimension_numbers=numbers)
        return jnp.sum(jax.nn.relu(convolved))

    shapes = ((3, 3, channels, channels), (24, 32, channels), (rois, 4))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().memory_analysis()
    # 16 cells of a bin, and what the convolution needs, would be 20
    assert memory.temp_size_in_bytes < 6 * rois * bins**2 * channels * 4
