"""FCIS (Li et al., 2017): class, box and mask of a RoI from score maps of the whole image, without a head.

The maps come in k x k groups, one for each part of a RoI, and for each class in pairs: whether a position
lies outside or inside an object of that class in that part. A pair gives a mask by its softmax and a class
score by its maximum, so masks and classes are predicted together.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import FCISConfig
from mrcnn_jax.config.model import STRIDES
from mrcnn_jax.models.detection import Candidates, Voters, vote_detections, voting_candidates
from mrcnn_jax.models.heads import select_class_masks
from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.rpn import NORMAL
from mrcnn_jax.models.two_stage import Images, Pyramid, TwoStage
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Float, Int


class ScoreMaps(NamedTuple):
    """Position-sensitive maps of k x k groups."""

    classes: Float[Array, "B H W k k2 pairs"]  # outside and inside of each of K + 1 classes
    boxes: Float[Array, "B H W k k2 4"]


class FCISInstances(NamedTuple):
    """Predictions for N boxes of each image, in float32."""

    logits: Float[Array, "B N K1"]
    mask_logits: Float[Array, "B N M M K1"]
    deltas: Float[Array, "B N 4"]


class ScoreMapHead(nn.Module):
    """A 1x1 convolution with ReLU, then one to the maps of classes and one to those of boxes."""

    config: FCISConfig
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B H W C"]) -> ScoreMaps:
        """Computes the maps from those of res5."""

        def conv(channels, name):
            return Conv(channels, (1, 1), kernel_init=NORMAL, dtype=self.dtype, name=name)

        def maps(channels, name):
            scores = conv(groups * groups * channels, name)(x)
            return scores.reshape(*features.shape[:3], groups, groups, channels)

        groups = self.config.groups
        x = nn.relu(conv(self.config.channels, "neck")(features))
        return ScoreMaps(maps(2 * (self.num_classes + 1), "classes"), maps(4, "deltas"))


class FCIS(TwoStage):
    """Fully convolutional instance-aware segmentation."""

    def setup(self):
        super().setup()
        if self.config.tasks:
            self.maps = ScoreMapHead(self.config.fcis, self.config.num_classes, self.dtype)

    def pyramid(self, images: Images, sizes: Int[Array, "B 2"], train: bool = False) -> Pyramid:
        """Computes the maps of res4, for the RPN, and of the dilated res5, both of stride 16."""
        return self.stages(images, sizes, train)[-2:]

    def anchors(self, pyramid: Pyramid, padded: tuple[int, int]) -> list[Float[Array, "_a 4"]]:
        """Returns the anchors of res4."""
        return super().anchors(pyramid[:1], padded)

    def objectness(self, pyramid: Pyramid) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Computes objectness logits and deltas of the anchors."""
        return super().objectness(pyramid[:1])

    def objectness_at(
        self, pyramid: Pyramid, index: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S"], Float[Array, "B S 4"]]:
        """Computes objectness logits and deltas of a few anchors."""
        return super().objectness_at(pyramid[:1], index)

    def score_maps(self, pyramid: Pyramid) -> ScoreMaps:
        """Computes the maps from which all RoIs are pooled."""
        return self.maps(pyramid[-1])

    def candidates(self, pyramid: Pyramid, proposals: Proposals, sizes: Int[Array, "B 2"]) -> Candidates:
        """Pools the proposals, then the boxes regressed from them; the instances of all passes are voters."""
        config, maps = self.config, self.score_maps(pyramid)
        boxes, passes = proposals.boxes, []
        for _ in range(config.fcis.passes):
            found = self.instances(maps, boxes)
            scores = jnp.where(proposals.valid[..., None], nn.softmax(found.logits)[..., :-1], 0)
            best = jnp.argmax(scores, axis=-1)
            passes.append((boxes, scores, nn.sigmoid(select_class_masks(found.mask_logits, best))))
            boxes = ops.decode(found.deltas, boxes, config.box.delta_weights, config.max_box_scale)
            boxes = jax.vmap(lambda boxes, size: ops.clip(boxes, size[0], size[1]))(boxes, sizes)
        parts = (jnp.concatenate(parts, axis=1) for parts in zip(*passes, strict=True))
        return voting_candidates(Voters(*parts), config.box)

    def select(self, candidates: Candidates) -> Predictions:
        """Selects detections, whose masks are voted on."""
        config = self.config
        return vote_detections(candidates, config, config.fcis.voting_iou, config.fcis.binarize_votes)

    def instances(self, maps: ScoreMaps, boxes: Float[Array, "B N 4"]) -> FCISInstances:
        """Predicts class, mask and deltas of what lies in each box; boxes get no gradient."""
        classes, deltas = (self._pool(scores, boxes).astype(jnp.float32) for scores in maps)
        pairs = classes.reshape(*classes.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        if self.config.fcis.joint_maps:
            first, second = jnp.maximum(first, second), second - first
        return FCISInstances(first.mean(axis=(2, 3)), second, deltas.mean(axis=(2, 3)))

    def _pool(self, maps, boxes):
        config, (batch, number, _) = self.config, boxes.shape
        images = jnp.repeat(jnp.arange(batch, dtype=boxes.dtype), number)[:, None]
        rois = jax.lax.stop_gradient(jnp.concatenate([images, boxes.reshape(-1, 4)], axis=1))
        place = config.fcis.size, 1 / STRIDES[config.backbone.features][0]
        if config.fcis.pooling == "ps_roi_pool":
            pooled = ops.ps_roi_pool(maps, rois, *place)
        else:
            pooled = ops.ps_roi_align(maps, rois, *place, config.pool.sampling_ratio)
        return pooled.reshape(batch, number, *pooled.shape[1:])

    def init_second_stage(self, pyramid: Pyramid) -> None:
        """Calls every layer of the second stage once."""
        self.score_maps(pyramid)
