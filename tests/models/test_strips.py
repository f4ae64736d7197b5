"""Maps in strips, as on TPUs, against whole ones."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.layers.strips import WHOLE, Strips, strips_of
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.models.rpn import RPNHead
from mrcnn_jax.runtime import compiling_for

CONFIG = BackboneConfig("resnet18", width=4, norm="frozen", freeze_stages=0)


class Detector(nn.Module):
    """Backbone, pyramid and RPN."""

    config: BackboneConfig
    norm: str = "none"

    @nn.compact
    def __call__(self, images):
        """Returns the pyramid, the logits and the deltas."""
        pyramid = FPN(8, self.norm)(ResNet(self.config)(images))
        return pyramid, RPNHead(3)(pyramid)


def test_strips_are_split_one_after_the_other_and_joined():
    x = np.arange(48, dtype=np.float32).reshape(2, 3, 8, 1)
    strips = Strips(4, axis=2)
    parts = strips.split(jnp.asarray(x))
    assert parts.shape == (8, 3, 2, 1)
    np.testing.assert_array_equal(parts[2:4], x[:, :, 2:4])  # the second strip of both images
    np.testing.assert_array_equal(strips.join(parts), x)
    rows = Strips(3, axis=1)
    np.testing.assert_array_equal(rows.split(jnp.asarray(x))[2:4], x[:, 1:2])
    np.testing.assert_array_equal(rows.join(rows.split(jnp.asarray(x))), x)


def test_strips_are_padded_with_the_edges_of_their_neighbours():
    x = jnp.arange(1.0, 13).reshape(1, 1, 12, 1)
    strips = Strips(3, axis=2)
    padded = strips.pad(strips.split(x), 2)[..., 0]
    expected = [[0, 0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9, 10], [7, 8, 9, 10, 11, 12, 0, 0]]
    np.testing.assert_array_equal(padded[:, 0], expected)


@pytest.mark.parametrize(
    "shape, stride, expected",
    [
        ((2, 200, 336, 1), 1, Strips(4, 2)),
        ((2, 336, 200, 1), 2, Strips(4, 1)),
        ((1, 200, 336, 1), 2, Strips(8, 2)),
        ((2, 50, 84, 1), 2, WHOLE),  # strips of 21 columns have no half
        ((3, 64, 64, 1), 1, WHOLE),
        ((2, 13, 21, 1), 1, WHOLE),
        ((5, 64, 64, 1), 1, WHOLE),
    ],
)
def test_strips_fill_registers_where_the_longer_side_divides(shape, stride, expected):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert strips_of(x, stride) == WHOLE  # on other platforms
    with compiling_for("tpu"):
        assert strips_of(x, stride) == expected


@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_convolution_of_strips_is_that_of_the_map(stride, dilation):
    random = np.random.default_rng(0)
    conv = Conv(5, (3, 3), (stride, stride), padding=dilation, kernel_dilation=dilation)
    x = jnp.asarray(random.normal(size=(2, 6, 16, 3)), jnp.float32)
    variables = conv.init(jax.random.key(0), x)
    strips = Strips(4, axis=2)
    found = strips.join(conv.apply(variables, strips.split(x), strips))
    np.testing.assert_allclose(found, conv.apply(variables, x), atol=1e-5)


@pytest.mark.parametrize(
    "size, strip, norm",
    [((64, 128), (16, 8), "none"), ((128, 64), (8, 16), "none"), ((64, 128), (16, 8), "group")],
)
def test_detector_on_strips_is_that_on_whole_maps(size, strip, norm):
    """Outputs and gradients; group norm, whose statistics are of whole maps, has none."""
    random = np.random.default_rng(0)
    config = replace(CONFIG, norm="group" if norm == "group" else "frozen")
    model, images = Detector(config, norm), jnp.asarray(random.normal(size=(2, *size, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), images)
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.apply, variables, images))
    weights = structure.unflatten(jnp.asarray(random.normal(size=leaf.shape), leaf.dtype) for leaf in leaves)

    def loss(variables):
        outputs = model.apply(variables, images)
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.mean(a * b), outputs, weights))), outputs

    found = {}
    for platform in ("cpu", "tpu"):
        with compiling_for(platform):
            traced = jax.jit(jax.grad(loss, has_aux=True)).trace(variables)
        in_strips = f"f32[8,{strip[0]},{strip[1]},4] = conv_general_dilated" in str(traced.jaxpr)
        assert in_strips == (platform == "tpu" and norm == "none")
        found[platform] = traced.lower().compile()(variables)
    scale = jax.tree.map(lambda leaf: float(np.abs(leaf).max()) + 1e-6, found["cpu"])
    for one, two, unit in zip(*map(jax.tree.leaves, (*found.values(), scale)), strict=True):
        np.testing.assert_allclose(np.asarray(one) / unit, np.asarray(two) / unit, atol=2e-5)
