"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017): the bottom-up half of the backbone."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.models.layers.blocked_stem import convolve_blocks, pool_blocks
from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.layers.max_pool import max_pool
from mrcnn_jax.models.layers.non_local import NonLocalBlock
from mrcnn_jax.models.layers.strips import WHOLE, Strips, strips_of
from mrcnn_jax.models.norm import make_norm
from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Bool, Float

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks of res2 to res5."""
MSRA = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nn.Module):
    """A residual block: basic (two 3x3 convolutions) or bottleneck (1x1, grouped 3x3, 1x1).

    Attributes:
        channels: of a basic block's output, and a quarter of a bottleneck's.
        stride, dilation: of the block's 3x3 convolutions; the stride applies once.
        config: network, groups, and which convolution has the stride.
        norm: layer class (``make_norm``).
        dtype: of the computation.
        strips: that the maps are cut into.
    """

    channels: int
    stride: int
    dilation: int
    config: BackboneConfig
    norm: Callable
    dtype: Any
    strips: Strips = WHOLE

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W _c"], valid: Bool[Array, "N"] | None = None
    ) -> Float[Array, "N h w C"]:
        """Adds the block's convolutions to x, or to its projection."""
        config = self.config

        def conv(name, x, channels, size, stride=1, groups=1):
            dilation = self.dilation if size == 3 else 1
            layer = Conv(
                channels, (size, size), (stride, stride), padding=size // 2 * dilation, use_bias=False,
                kernel_dilation=dilation, feature_group_count=groups, kernel_init=MSRA, dtype=self.dtype,
                name=name,
            )  # fmt: skip
            return self.norm(name=f"{name}_norm")(layer(x, self.strips), valid)

        if config.name in BASIC:
            y = nn.relu(conv("conv1", x, self.channels, 3, self.stride))
            y = conv("conv2", y, self.channels, 3)
        else:
            inner = self.channels * config.group_width // 64 * config.groups
            first, second = (self.stride, 1) if config.stride_in_1x1 else (1, self.stride)
            y = nn.relu(conv("conv1", x, inner, 1, first))
            y = nn.relu(conv("conv2", y, inner, 3, second, config.groups))
            y = conv("conv3", y, 4 * self.channels, 1)
        if x.shape != y.shape:
            x = conv("shortcut", x, y.shape[-1], 1, self.stride)
        return nn.relu(x + y)


def stage(
    number: int, x: Float[Array, "N H W _c"], config: BackboneConfig, stride: int, train: bool, dtype: Any,
    remat: bool, dilation: int = 1, valid: Bool[Array, "N"] | None = None,
) -> Float[Array, "N h w C"]:  # fmt: skip
    """Applies the blocks of res2, .., res5, as children of the calling module.

    Args:
        number: 2 to 5.
        x: output of the previous stage.
        config: network, width and normalisation.
        stride: of the first block.
        train: batch norm uses and updates the statistics of the batch.
        dtype: of the computation.
        remat: recompute blocks in the backward pass.
        dilation: of the 3x3 convolutions.
        valid: see ``models.norm``.
    """
    block_class = nn.remat(Block) if remat else Block
    norm = make_norm(config.norm, config.norm_epsilon, train, dtype)
    channels, depth = config.width * 2 ** (number - 2), DEPTHS[config.name][number - 2]
    # group norm and the non-local block need whole maps; RoIs are many
    is_whole = config.norm == "group" or config.non_local and number == 4 or valid is not None
    strips = WHOLE if is_whole else strips_of(x, stride)
    x = strips.split(x)
    for index in range(depth):
        if config.non_local and number == 4 and index == depth - 1:
            x = NonLocalBlock(dtype, name="res4_non_local")(x)
        name, block_stride = f"res{number}_{index}", stride if index == 0 else 1
        x = block_class(channels, block_stride, dilation, config, norm, dtype, strips, name=name)(x, valid)
    return strips.join(x)


class ResNet(nn.Module):
    """Stem and stages, up to res5, or res4 if res5 is the head of RoIs (features c4).

    The first ``freeze_stages`` of stem, res2, .., res5 pass no gradient; nor are they updated, and batch norm
    uses its running statistics in them.
    """

    config: BackboneConfig
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> list[Float[Array, "B _h _w _c"]]:
        """Computes the outputs of res2, .., res5, of strides 4 to 32 (a dilated res5 has 16).

        Args:
            images: normalised.
            train: batch norm of trained stages uses and updates the statistics of the batch.
        """
        config = self.config
        learns = train and config.freeze_stages < 1
        x = self._stem(images, make_norm(config.norm, config.norm_epsilon, learns, self.dtype))
        features = []
        for number in range(2, 5 if config.features == "c4" else 6):
            if number - 1 <= config.freeze_stages:
                x = jax.lax.stop_gradient(x)
            learns = train and number > config.freeze_stages
            dilated = number == 5 and config.features == "dc5"
            stride, dilation = (1 if number == 2 or dilated else 2), (2 if dilated else 1)
            x = stage(number, x, config, stride, learns, self.dtype, self.remat, dilation)
            features.append(x)
        frozen = max(config.freeze_stages - 1, 0)  # the first is the stem
        return [*map(jax.lax.stop_gradient, features[:frozen]), *features[frozen:]]

    def _stem(self, images, make_layer):
        config = self.config
        settings = {"use_bias": False, "kernel_init": MSRA, "dtype": self.dtype, "name": "stem"}
        norm, is_frozen = make_layer(name="stem_norm"), config.norm == "frozen" and config.freeze_stages > 0
        if target_platform() == "tpu" and is_frozen and not (images.shape[1] % 4 or images.shape[2] % 4):
            stem = nn.Conv(config.width, (7, 7), conv_general_dilated=convolve_blocks, **settings)
            return pool_blocks(*(nn.relu(norm(block)) for block in jnp.split(stem(images), 4, axis=-1)))
        x = nn.relu(norm(Conv(config.width, (7, 7), (2, 2), padding=3, **settings)(images)))
        return max_pool(x)


class Res5(nn.Module):
    """res5 as the head of RoIs, of features c4 (section 3, figure 4, left)."""

    config: BackboneConfig
    stride: int
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, rois: Float[Array, "N PH PW _c"], valid: Bool[Array, "N"] | None = None, train: bool = False
    ) -> Float[Array, "N ph pw C"]:
        """Applies res5 to the pooled features of each RoI."""
        return stage(5, rois, self.config, self.stride, train, self.dtype, self.remat, valid=valid)


def frozen_modules(config: BackboneConfig) -> tuple[str, ...]:
    """Returns the prefixes of the names of the frozen stages' modules."""
    return ("stem", "res2", "res3", "res4", "res5")[: config.freeze_stages]
