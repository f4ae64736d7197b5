"""Region proposal network (Ren et al., 2015) over a pyramid: its head, and how proposals are chosen from what it says."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.structures import Proposals
from mrcnn_jax.typing import Array, Float, Int

NORMAL = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """3x3 convolutions (one in the paper), as wide as their input, then an objectness logit and four deltas for each anchor of a cell. The same weights serve all levels."""

    anchors_per_cell: int
    convolutions: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Sequence[Float[Array, "B _h _w C"]]) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Logits and deltas of each level's anchors, in float32."""
        channels = pyramid[0].shape[-1]
        hidden = [
            nn.Conv(channels, (3, 3), padding=1, kernel_init=NORMAL, dtype=self.dtype, name=f"conv{index}")
            for index in range(1, self.convolutions + 1)
        ]
        objectness = nn.Conv(self.anchors_per_cell, (1, 1), kernel_init=NORMAL, dtype=self.dtype, name="objectness")
        deltas = nn.Conv(4 * self.anchors_per_cell, (1, 1), kernel_init=NORMAL, dtype=self.dtype, name="deltas")
        logits, shifts = [], []
        for level in pyramid:
            x, batch = level, level.shape[0]
            for convolution in hidden:
                x = nn.relu(convolution(x))
            logits.append(objectness(x).reshape(batch, -1).astype(jnp.float32))
            shifts.append(deltas(x).reshape(batch, -1, 4).astype(jnp.float32))
        return logits, shifts


def select_proposals(
    logits: Sequence[Float[Array, "B _a"]],
    deltas: Sequence[Float[Array, "B _a 4"]],
    anchors: Sequence[Float[Array, "_a 4"]],
    sizes: Int[Array, "B 2"],
    pre_nms: int,
    post_nms: int,
    nms_iou: float,
    min_size: float = 0.0,
    largest_growth: float = 1000 / 16,
) -> Proposals:
    """The best ``post_nms`` boxes of each image, over all levels.

    On each level the ``pre_nms`` best anchors are decoded, clipped to the image and put through NMS. What has no area, or a side
    below ``min_size`` pixels, is left out before it (torchvision: 1e-3).
    """

    def level(logits, deltas, anchors, size):
        count = min(pre_nms, logits.size)
        scores, index = jax.lax.top_k(logits, count)
        boxes = ops.clip(ops.decode(deltas[index], anchors[index], largest_growth=largest_growth), size[0], size[1])
        # every level is brought to the same length, so that one NMS serves them all
        missing = pre_nms - count
        return (
            jnp.pad(boxes, ((0, missing), (0, 0))),
            jnp.pad(scores, (0, missing), constant_values=-jnp.inf),
            jnp.pad(ops.is_nonempty(boxes, min_size), (0, missing)),
        )

    def image(logits, deltas, size):
        chosen = [level(*each, size) for each in zip(logits, deltas, anchors, strict=True)]
        boxes, scores, valid = (jnp.stack(parts) for parts in zip(*chosen, strict=True))
        keep = jax.vmap(lambda boxes, scores, valid: ops.nms(boxes, scores, nms_iou, valid))(boxes, scores, valid)
        boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
        index, exists = ops.masked_top_k(keep.reshape(-1), scores, post_nms)
        return Proposals(boxes=jnp.where(exists[:, None], boxes[index], 0), scores=scores[index], valid=exists)

    return jax.lax.stop_gradient(jax.vmap(image)(list(logits), list(deltas), sizes))
