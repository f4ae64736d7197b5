"""The backbone's stem on blocks, for TPUs, against the ordinary one."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models import resnet
from mrcnn_jax.models.norm import make_norm
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.runtime import compiling_for

CONFIG = BackboneConfig(width=8)
SHAPE = (2, 16, 24, 3)


class Stem(ResNet):
    """The stem alone."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return self._stem(images, make_norm(self.config.norm, 1e-5, False, self.dtype))


def test_stem_on_blocks_is_the_ordinary_stem():
    random, stem = np.random.default_rng(0), Stem(CONFIG)
    images = jnp.asarray(random.normal(size=SHAPE), jnp.float32)
    shapes = jax.eval_shape(stem.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(-1, 1, leaf.shape), leaf.dtype), shapes)
    variables["frozen"]["stem_norm"]["var"] += 1.5

    def program(platform):
        with compiling_for(platform):
            return jax.jit(stem.apply).lower(variables, images)

    ordinary, blocked = program("cpu"), program("tpu")
    assert "reduce_window" in ordinary.as_text() and "reduce_window" not in blocked.as_text()
    expected = ordinary.compile()(variables, images)
    assert expected.shape == (2, 4, 6, 8) and float(expected.min()) == 0
    np.testing.assert_allclose(blocked.compile()(variables, images), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "config, shape",
    [
        (CONFIG, (2, 16, 22, 3)), (replace(CONFIG, norm="batch"), SHAPE),
        (replace(CONFIG, freeze_stages=0), SHAPE),
    ],
)
def test_stem_is_not_on_blocks_where_it_trains_or_they_do_not_fit(config, shape, monkeypatch):
    monkeypatch.setattr(resnet, "convolve_blocks", None)
    with compiling_for("tpu"):
        out, _ = jax.eval_shape(Stem(config).init_with_output, jax.random.key(0), jnp.zeros(shape))
    assert out.shape == (2, 4, 6, 8)
