"""Heads over the pooled features of RoIs: class and box (Fast R-CNN), mask (figure 4), keypoints (section 5).

N counts RoI slots; ``valid`` marks for batch norm those that hold a RoI; None is all of them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from mrcnn_jax.models.fpn import XAVIER
from mrcnn_jax.models.layers.bias import add_bias
from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.layers.transposed_convolution import interleave, transposed_convolution
from mrcnn_jax.models.norm import Identity, make_norm
from mrcnn_jax.models.resnet import MSRA
from mrcnn_jax.runtime import target_platform
from mrcnn_jax.typing import Array, Bool, Float, Int

Valid = Bool[Array, "N"] | None


class BoxHead(nn.Module):
    """Convolutions and fully connected layers, then class logits and class-specific box deltas."""

    config: BoxHeadConfig
    num_classes: int
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, rois: Float[Array, "N PH PW C"], valid: Valid = None, train: bool = False
    ) -> tuple[Float[Array, "N K1"], Float[Array, "N K 4"]]:
        """Computes logits of K classes and background (K1 = K + 1), and box deltas, in float32."""
        config, dtype = self.config, self.dtype
        norm = make_norm(config.norm, self.norm_epsilon, train, dtype)
        x = _convolutions(rois, valid, config.convolutions, config.convolution_channels, norm, dtype)
        if config.fully_connected:
            x = _fully_connected(x, config.fully_connected, config.channels, dtype)
        else:
            x = x.mean(axis=(1, 2))
        logits = dense(self.num_classes + 1, 0.01, dtype, "classes")(x)
        deltas = dense(self.num_classes * 4, 0.001, dtype, "deltas")(x)
        return logits.astype(jnp.float32), deltas.reshape(-1, self.num_classes, 4).astype(jnp.float32)


class MaskHead(nn.Module):
    """Mask logits at twice the resolution of the RoI's features."""

    config: MaskHeadConfig
    num_classes: int
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, rois: Float[Array, "N PH PW C"], valid: Valid = None, train: bool = False,
        classes: Int[Array, "N"] | None = None,
    ) -> Float[Array, "N M M2 k"]:  # fmt: skip
        """Computes k = K maps in float32; 1 if class-agnostic, K + 1 for the softmax loss.

        Given ``classes``, only the map of each RoI's class is returned, k = 1: the others are left out before
        they are rearranged.
        """
        config, dtype = self.config, self.dtype
        maps = 1 if config.class_agnostic else self.num_classes + (config.loss == "softmax")
        number, height, width, _ = rois.shape

        def own(logits):
            return logits if classes is None else select_class_masks(logits, classes)[..., None]

        if config.head == "mlp":
            x = _fully_connected(rois, config.layers, config.channels, dtype)
            logits = dense(4 * height * width * maps, 0.001, dtype, "logits")(x)
            return own(logits.reshape(number, 2 * height, 2 * width, maps)).astype(jnp.float32)
        norm = make_norm(config.norm, self.norm_epsilon, train, dtype)
        x = _convolutions(rois, valid, config.layers, config.channels, norm, dtype)
        # windows of a 2x2 transposed convolution of stride 2 do not overlap, so it is a matrix product; each
        # cell's 2x2 outputs are quarters of its channels until only the logits are left to rearrange
        if target_platform() == "cpu":  # flat, as XLA would transpose maps for the gradient of the kernel
            x = x.reshape(-1, 1, 1, x.shape[-1])
        x = nn.Dense(4 * config.channels, use_bias=False, kernel_init=MSRA, dtype=dtype, name="upsample")(x)
        bias = self.param("upsample_bias", nn.initializers.zeros, (config.channels,)).astype(dtype)
        x, logits = nn.relu(add_bias(x, jnp.tile(bias, 4))), dense(maps, 0.001, dtype, "logits")
        quarters = [
            own(logits(part).reshape(number, height, width, maps)) for part in jnp.split(x, 4, axis=-1)
        ]
        cells = jnp.stack(quarters, axis=3).reshape(number, height, width, 2, 2, quarters[0].shape[-1])
        return interleave(cells).astype(jnp.float32)


class KeypointHead(nn.Module):
    """3x3 convolutions, a 4x4 transposed convolution of stride 2 to a map per keypoint, upsampling."""

    config: KeypointHeadConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rois: Float[Array, "N PH PW C"], valid: Valid = None) -> Float[Array, "N J m m2"]:
        """Computes logits over the positions of each RoI, in float32."""
        config, joints = self.config, self.config.num_keypoints
        x = _convolutions(rois, valid, config.layers, config.channels, Identity, self.dtype)
        initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("logits_kernel", initializer, (4, 4, x.shape[-1], joints))
        bias = self.param("logits_bias", nn.initializers.zeros, (joints,))
        x = transposed_convolution(x, kernel.astype(self.dtype))
        x = x.astype(jnp.float32) + bias.reshape(1, 1, 1, -1)
        number, height, width, _ = x.shape
        x = jax.image.resize(x, (number, 2 * height, 2 * width, joints), "bilinear")
        return x.transpose(0, 3, 1, 2)


def select_class_masks(
    masks: Float[Array, "*n M M2 k"], classes: Int[Array, "*n"]
) -> Float[Array, "*n M M2"]:
    """Returns the mask of each RoI's class."""
    own = jax.nn.one_hot(classes, masks.shape[-1], dtype=bool)[..., None, None, :]
    return jnp.where(own, masks, 0).sum(axis=-1)


def _convolutions(x, valid, count, channels, norm, dtype):
    """Applies 3x3 convolutions with ReLU: conv1, conv2, ... of the calling module."""
    for index in range(1, count + 1):
        conv = Conv(channels, (3, 3), padding=1, use_bias=norm is Identity, kernel_init=MSRA, dtype=dtype,
                       name=f"conv{index}")  # fmt: skip
        x = nn.relu(norm(name=f"conv{index}_norm")(conv(x), valid))
    return x


def _fully_connected(x, count, channels, dtype):
    """Applies fully connected layers with ReLU to the flattened RoIs: fc1, fc2, ... of the calling module."""
    x = x.reshape(x.shape[0], -1)
    for index in range(1, count + 1):
        x = nn.relu(nn.Dense(channels, kernel_init=XAVIER, dtype=dtype, name=f"fc{index}")(x))
    return x


def dense(outputs: int, deviation: float, dtype: Any, name: str) -> nn.Dense:
    """Returns a fully connected layer, or 1x1 convolution, with normally distributed initial weights."""
    return nn.Dense(outputs, kernel_init=nn.initializers.normal(deviation), dtype=dtype, name=name)
