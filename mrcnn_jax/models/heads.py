"""What is predicted for each RoI: class and box (Fast R-CNN), and a mask (Mask R-CNN, figure 4, right)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mrcnn_jax.config import BoxHeadConfig, MaskHeadConfig
from mrcnn_jax.models.fpn import XAVIER
from mrcnn_jax.models.norm import normalisation
from mrcnn_jax.models.resnet import MSRA


class BoxHead(nn.Module):
    """Two fully connected layers, then K + 1 class logits (background last) and K x 4 deltas, in float32."""

    config: BoxHeadConfig
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rois: Float[Array, "N PH PW C"]) -> tuple[Float[Array, "N K+1"], Float[Array, "N K 4"]]:
        x = rois.reshape(rois.shape[0], -1)
        for index in (1, 2):
            x = nn.relu(nn.Dense(self.config.channels, kernel_init=XAVIER, dtype=self.dtype, name=f"fc{index}")(x))
        logits = nn.Dense(self.num_classes + 1, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype, name="classes")(x)
        deltas = nn.Dense(self.num_classes * 4, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="deltas")(x)
        return logits.astype(jnp.float32), deltas.reshape(-1, self.num_classes, 4).astype(jnp.float32)


class MaskHead(nn.Module):
    """3x3 convolutions, a 2x2 transposed convolution of stride 2, and one logit map for each class, in float32."""

    config: MaskHeadConfig
    num_classes: int
    norm_epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, rois: Float[Array, "N PH PW C"], train: bool = False) -> Float[Array, "N M M K"]:
        config = self.config
        norm = normalisation(config.norm, self.norm_epsilon, train, self.dtype)
        x = rois
        for index in range(1, config.convolutions + 1):
            conv = nn.Conv(
                config.channels, (3, 3), padding=1, use_bias=config.norm == "none", kernel_init=MSRA, dtype=self.dtype, name=f"conv{index}"
            )
            x = nn.relu(norm(name=f"conv{index}_norm")(conv(x)))
        # a 2x2 transposed convolution of stride 2 is one matrix product, for its windows do not overlap; each cell's 2x2 outputs stay
        # together until only the logits are left to rearrange
        x = nn.Dense(4 * config.channels, use_bias=False, kernel_init=MSRA, dtype=self.dtype, name="upsample")(x)
        bias = self.param("upsample_bias", nn.initializers.zeros, (config.channels,)).astype(self.dtype)
        x = nn.relu(x + jnp.tile(bias, 4)).reshape(*x.shape[:3], 2, 2, config.channels)
        logits = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.001), dtype=self.dtype, name="logits")(x)
        number, height, width = logits.shape[:3]
        logits = logits.transpose(0, 1, 3, 2, 4, 5).reshape(number, 2 * height, 2 * width, self.num_classes)
        return logits.astype(jnp.float32)
