"""Region proposal network (Ren et al., 2015) over one or several feature maps."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.config.model import STRIDES
from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.layers.strips import WHOLE, strips_of
from mrcnn_jax.structures import Proposals
from mrcnn_jax.typing import Array, Bool, Float, Int

NORMAL = nn.initializers.normal(0.01)


class RPNHead(nn.Module):
    """3x3 convolutions as wide as their input, then an objectness logit and four deltas per anchor.

    All levels share the weights.
    """

    anchors_per_cell: int
    convolutions: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Sequence[Float[Array, "B _h _w C"]], inside: Bool[Array, "B k k"] | None = None
    ) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Computes logits and deltas of each level's anchors, in float32.

        Args:
            pyramid: the maps, or one "map" of patches.
            inside: for patches: which of their cells lie on the map. Patches are not padded, and of side
                2 ``convolutions`` + 1: the anchors of their central cells are left.
        """
        channels, padding = pyramid[0].shape[-1], 1 if inside is None else 0
        hidden = [
            Conv(channels, (3, 3), padding=padding, kernel_init=NORMAL, dtype=self.dtype, name=f"conv{index}")
            for index in range(1, self.convolutions + 1)
        ]
        objectness, shift = (
            Conv(outputs * self.anchors_per_cell, (1, 1), kernel_init=NORMAL, dtype=self.dtype, name=name)
            for outputs, name in ((1, "objectness"), (4, "deltas"))
        )
        logits, deltas = [], []
        for features in pyramid:
            batch, strips = len(features), WHOLE if padding == 0 else strips_of(features)
            x = strips.split(features)
            for convolution in hidden:
                x = nn.relu(convolution(x, strips))
                if inside is not None:  # what lies outside the map is padding to the next convolution
                    inside = inside[:, 1:-1, 1:-1]
                    x = jnp.where(inside[..., None], x, 0)
            logits.append(strips.join(objectness(x)).reshape(batch, -1).astype(jnp.float32))
            deltas.append(strips.join(shift(x)).reshape(batch, -1, 4).astype(jnp.float32))
        return logits, deltas

    def at_anchors(
        self, pyramid: Sequence[Float[Array, "B _h _w C"]], index: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S"], Float[Array, "B S 4"]]:
        """Computes logits and deltas of some anchors from the patches of the maps that they depend on.

        Args:
            pyramid: the maps.
            index: of the anchors of each image among those of all levels.
        """
        patches, inside = (
            array.reshape(index.size, *array.shape[2:])
            for array in _patches(pyramid, index // self.anchors_per_cell, self.convolutions)
        )
        (logits,), (deltas,) = self([patches], inside)
        own = (index % self.anchors_per_cell).reshape(-1, 1)
        logits = jnp.take_along_axis(logits, own, axis=1)
        deltas = jnp.take_along_axis(deltas, own[..., None], axis=1)
        return logits.reshape(index.shape), deltas.reshape(*index.shape, 4)


def _patches(
    pyramid: Sequence[Float[Array, "B _h _w C"]], cell: Int[Array, "B S"], radius: int
) -> tuple[Float[Array, "B S k k C"], Bool[Array, "B S k k"]]:
    """Returns the cells around those of some numbers among all levels, and which of them lie on the map."""
    around = jnp.arange(-radius, radius + 1)
    image, patches, inside = jnp.arange(cell.shape[0])[:, None, None, None], 0, False
    for features in pyramid:
        height, width = features.shape[1:3]
        rows = (cell // width)[..., None, None] + around[None, None, :, None]
        columns = (cell % width)[..., None, None] + around[None, None, None]
        here = (0 <= cell) & (cell < height * width)
        here = here[..., None, None] & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        read = features.at[image, jnp.where(here, rows, height), columns].get(mode="fill", fill_value=0)
        patches, inside, cell = patches + read, inside | here, cell - height * width
    return patches, inside


def anchor_layout(
    config: ModelConfig, grids: Sequence[tuple[int, int]], padded: tuple[int, int]
) -> tuple[Sequence[Sequence[float]], Sequence[tuple[int, int]]]:
    """Returns the sizes of the anchors of each feature map, and their strides along y and x.

    Args:
        config: of the detector.
        grids: rows and columns of each feature map.
        padded: height and width of the padded images.
    """
    features, sizes = config.backbone.features, config.rpn.anchor_sizes
    by_level = [[size] for size in sizes] if features == "fpn" else [sizes]
    if config.conventions.anchor_strides == "grid":
        return by_level, [(padded[0] // rows, padded[1] // columns) for rows, columns in grids]
    return by_level, [(stride, stride) for stride in STRIDES[features]]


def select_proposals(
    logits: Sequence[Float[Array, "B _a"]],
    deltas: Sequence[Float[Array, "B _a 4"]],
    anchors: Sequence[Float[Array, "_a 4"]],
    sizes: Int[Array, "B 2"],
    pre_nms: int,
    post_nms: int,
    nms_iou: float,
    min_size: float = 0.0,
    max_box_scale: float = 1000 / 16,
    gradient_clip: float | None = None,
) -> Proposals:
    """Selects the best boxes of each image over all levels.

    Args:
        logits, deltas, anchors: of each level.
        sizes: height and width of the images, to which boxes are clipped.
        pre_nms: best anchors per level that enter NMS, which is done level by level.
        post_nms: proposals per image, P.
        nms_iou: IoU threshold of NMS.
        min_size: minimum side in pixels of boxes that enter NMS; those without area never do.
        max_box_scale: maximum factor by which deltas enlarge an anchor.
        gradient_clip: largest gradient of one image's loss that flows from the boxes to each of their deltas,
            where the loss is a mean over the B images; 0 for any. None lets none flow.
    """
    logits = jax.lax.stop_gradient(list(logits))
    if gradient_clip is None:
        deltas = jax.lax.stop_gradient(list(deltas))
    elif gradient_clip:
        deltas = [ops.clip_gradient(each, gradient_clip / len(each)) for each in deltas]

    def level(logits, deltas, anchors, size):
        count = min(pre_nms, logits.size)
        index, _ = ops.masked_top_k(jnp.ones_like(logits, bool), logits, count)  # NaN ranks last
        scores = logits[index]
        boxes = ops.decode(deltas[index], anchors[index], max_scale=max_box_scale)
        boxes = ops.clip(boxes, size[0], size[1])
        padding = pre_nms - count  # levels of equal length share one NMS
        return (
            jnp.pad(boxes, ((0, padding), (0, 0))),
            jnp.pad(scores, (0, padding), constant_values=-jnp.inf),
            jnp.pad(ops.is_nonempty(boxes, min_size), (0, padding)),
        )

    def image(logits, deltas, size):
        levels = [level(*each, size) for each in zip(logits, deltas, anchors, strict=True)]
        boxes, scores, valid = (jnp.stack(parts) for parts in zip(*levels, strict=True))
        suppress = partial(ops.nms, threshold=nms_iou, max_output=post_nms)
        keep = jax.vmap(lambda *level: suppress(*level[:2], valid=level[2]))(boxes, scores, valid)
        boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
        index, valid = ops.masked_top_k(keep.reshape(-1), scores, post_nms)
        return Proposals(boxes=jnp.where(valid[:, None], boxes[index], 0), scores=scores[index], valid=valid)

    return jax.vmap(image)(logits, list(deltas), sizes)
