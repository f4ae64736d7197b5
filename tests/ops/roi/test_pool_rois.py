"""Features of RoIs of every size, each from its own level, against Detectron2's three poolers."""

import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.ops.roi.levels import assign_levels, pool_rois

POOLERS = {
    "ROIAlign": {"aligned": False, "sampling_ratio": 0},
    "ROIAlignV2": {"aligned": True, "sampling_ratio": 0},
    "ROIPool": {"operation": "pool", "reduction": "max"},
}


@pytest.mark.parametrize("name", POOLERS)
def test_equals_detectron2(golden, name):
    arrays = golden("fpn_levels")
    pyramid = [jnp.asarray(arrays[f"feat{level}"].transpose(0, 2, 3, 1)) for level in range(4)]
    boxes = jnp.asarray(arrays["boxes"])
    pooled = pool_rois(pyramid, boxes[None], assign_levels(boxes, epsilon=0.0)[None] - 2, (4, 8, 16, 32), 7, **POOLERS[name])
    np.testing.assert_allclose(pooled[0], arrays[f"d2_pool_7x7_sr0_{name}"].transpose(0, 2, 3, 1), rtol=0, atol=3e-5)
