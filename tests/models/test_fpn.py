"""The feature pyramid: additions, upsampling and P6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.runtime import compiling_for


def centre_kernels(names):
    """Convolutions of the pyramid that pass their centre unchanged."""
    one, three = jnp.ones((1, 1, 1, 1)), jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    kernels = {name: one if name.startswith("lateral") else three for name in names}
    return {name: {"kernel": kernel, "bias": jnp.zeros(1)} for name, kernel in kernels.items()}


def test_pyramid_adds_from_the_top_down():
    """With kernels that pass their centre unchanged, P_n is the sum of C_n to C_5."""
    features = [jnp.full((1, 16 // 2**i, 16 // 2**i, 1), 10.0**i) for i in range(4)]
    model = FPN(channels=1)
    variables = model.init(jax.random.key(0), features)
    pyramid = model.apply({"params": centre_kernels(variables["params"])}, features)
    assert [level.shape for level in pyramid] == [(1, side, side, 1) for side in (16, 8, 4, 2, 1)]
    assert [float(level.min()) for level in pyramid] == [1111, 1110, 1100, 1000, 1000]
    assert [float(level.max()) for level in pyramid] == [1111, 1110, 1100, 1000, 1000]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_pyramid_copies_the_nearest_cell_and_p6_takes_every_second(platform):
    features = [jnp.zeros((1, side, side, 1)) for side in (8, 4, 2, 1)]
    features[2] = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])[None, ..., None]
    model = FPN(channels=1)
    kernels = centre_kernels(f"{kind}{level}" for kind in ("lateral", "output") for level in range(2, 6))
    with compiling_for(platform):
        p2, *_ = model.apply({"params": kernels}, features)
    np.testing.assert_array_equal(p2[0, :, :, 0], np.kron([[1, 2], [3, 4]], np.ones((4, 4))))
    features[3] = jnp.arange(15.0).reshape(1, 3, 5, 1)
    features[:3] = [jnp.zeros((1, 3 * 2**i, 5 * 2**i, 1)) for i in (3, 2, 1)]
    p6 = model.apply({"params": kernels}, features)[4]
    np.testing.assert_array_equal(p6[0, :, :, 0], [[0, 2, 4], [10, 12, 14]])
