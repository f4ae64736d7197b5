"""What is predicted for each RoI: class and box (Fast R-CNN), a mask (Mask R-CNN, figure 4), keypoints (section 5).

``real`` says which of the N slots hold a RoI; all do where it is not given.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax.config import BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from mrcnn_jax.models.fpn import XAVIER
from mrcnn_jax.models.norm import Identity, normalisation
from mrcnn_jax.models.resnet import MSRA
from mrcnn_jax.typing import Array, Bool, Float


def _convolutions(x, real, count, channels, norm, dtype):
    """3x3 convolutions with ReLU: conv1, conv2, ... of the module that calls it."""
    for index in range(1, count + 1):
        x = nn.Conv(channels, (3, 3), padding=1, use_bias=norm is Identity, kernel_init=MSRA, dtype=dtype, name=f"conv{index}")(x)
        x = nn.relu(norm(name=f"conv{index}_norm")(x, real))
    return x


def _fully_connected(x, count, channels, dtype):
    """Fully connected layers with ReLU over all of a RoI's features: fc1, fc2, ... of the module that calls it."""
    x = x.reshape(x.shape[0], -1)
    for index in range(1, count + 1):
        x = nn.relu(nn.Dense(channels, kernel_init=XAVIER, dtype=dtype, name=f"fc{index}")(x))
    return x


class BoxHead(nn.Module):
    """Convolutions and fully connected layers as configured, then K + 1 class logits (background last) and K x 4 deltas, in float32."""

    config: BoxHeadConfig
    num_classes: int
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, rois: Float[Array, "N PH PW C"], real: Bool[Array, "N"] | None = None, train: bool = False
    ) -> tuple[Float[Array, "N K+1"], Float[Array, "N K 4"]]:
        config = self.config
        norm = normalisation(config.norm, self.norm_epsilon, train, self.dtype)
        x = _convolutions(rois, real, config.convolutions, config.convolution_channels, norm, self.dtype)
        x = _fully_connected(x, config.fully_connected, config.channels, self.dtype) if config.fully_connected else x.mean(axis=(1, 2))
        logits = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="classes")(x)
        deltas = nn.Dense(self.num_classes * 4, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="deltas")(x)
        return logits.astype(jnp.float32), deltas.reshape(-1, self.num_classes, 4).astype(jnp.float32)


class MaskHead(nn.Module):
    """Mask logits at twice the resolution of the RoI features, in float32: one map for each class, or for all, or for classes and background."""

    config: MaskHeadConfig
    num_classes: int
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rois: Float[Array, "N PH PW C"], real: Bool[Array, "N"] | None = None, train: bool = False) -> Float[Array, "N M M k"]:
        config = self.config
        maps = 1 if config.class_agnostic else self.num_classes + (config.loss == "softmax")
        number, height, width, _ = rois.shape
        if config.head == "mlp":
            x = _fully_connected(rois, config.layers, config.channels, self.dtype)
            logits = nn.Dense(4 * height * width * maps, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="logits")(x)
            return logits.reshape(number, 2 * height, 2 * width, maps).astype(jnp.float32)
        norm = normalisation(config.norm, self.norm_epsilon, train, self.dtype)
        x = _convolutions(rois, real, config.layers, config.channels, norm, self.dtype)
        # a 2x2 transposed convolution of stride 2 is one matrix product, for its windows do not overlap; each cell's 2x2 outputs stay
        # together until only the logits are left to rearrange
        x = nn.Dense(4 * config.channels, use_bias=False, kernel_init=MSRA, dtype=self.dtype, name="upsample")(x)
        bias = self.param("upsample_bias", nn.initializers.zeros, (config.channels,)).astype(self.dtype)
        x = nn.relu(x + jnp.tile(bias, 4)).reshape(*x.shape[:3], 2, 2, config.channels)
        logits = nn.Dense(maps, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="logits")(x)
        return _interleave(logits).astype(jnp.float32)


class KeypointHead(nn.Module):
    """3x3 convolutions, a 4x4 transposed convolution of stride 2 to one map for each keypoint, and bilinear upsampling by 2, in float32."""

    config: KeypointHeadConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rois: Float[Array, "N PH PW C"], real: Bool[Array, "N"] | None = None) -> Float[Array, "N J m m"]:
        config, joints = self.config, self.config.num_keypoints
        x = _convolutions(rois, real, config.layers, config.channels, Identity, self.dtype)
        initialiser = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("logits_kernel", initialiser, (4, 4, x.shape[-1], joints))
        bias = self.param("logits_bias", nn.initializers.zeros, (joints,))
        x = _transposed_convolution(x, kernel.astype(self.dtype)).astype(jnp.float32) + bias
        number, height, width, _ = x.shape
        return jax.image.resize(x, (number, 2 * height, 2 * width, joints), "bilinear").transpose(0, 3, 1, 2)


def _transposed_convolution(x, kernel):
    """4x4, stride 2, padding 1, as an ordinary 3x3 convolution to the 2x2 outputs of each cell.

    With its gradient that takes a quarter of the time of the usual form, a dilated convolution, on CPU; the forward pass alone takes up to
    twice as long, for the taps that are 0.
    """
    inputs, outputs = kernel.shape[2:]
    expanded = jnp.zeros((3, 3, inputs, 2, 2, outputs), kernel.dtype)
    for a in range(2):
        for b in range(2):
            # row y + d of the input meets row 2y + a of the output through kernel row a + 1 - 2d: rows 3 and 1, or 2 and 0
            expanded = expanded.at[a : a + 2, b : b + 2, :, a, b].set(kernel[3 - a :: -2, 3 - b :: -2])
    out = jax.lax.conv_general_dilated(x, expanded.reshape(3, 3, inputs, -1), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return _interleave(out.reshape(*out.shape[:3], 2, 2, outputs))


def _interleave(x):
    """[N, H, W, 2, 2, C], each cell with its 2x2 outputs, to [N, 2H, 2W, C]."""
    number, height, width, _, _, channels = x.shape
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(number, 2 * height, 2 * width, channels)
