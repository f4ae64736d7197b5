"""The assembled detector."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.fpn import FPN, STRIDES
from mrcnn_jax.models.heads import BoxHead, MaskHead
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.models.rpn import RPNHead, select_proposals
from mrcnn_jax.structures import Predictions, Proposals

Pyramid = Sequence[Float[Array, "B _h _w C"]]


class MaskRCNN(nn.Module):
    """Mask R-CNN with a feature pyramid. Calling it detects; training calls its parts (see training.step).

    The sides of the padded images are multiples of 32.
    """

    config: ModelConfig
    dtype: Any = jnp.float32

    def setup(self):
        config, backbone = self.config, self.config.backbone
        self.backbone = ResNet(backbone, self.dtype)
        self.fpn = FPN(backbone.pyramid_channels, backbone.pyramid_norm, backbone.norm_epsilon, self.dtype)
        self.rpn = RPNHead(backbone.pyramid_channels, len(config.rpn.aspect_ratios), self.dtype)
        self.box = BoxHead(config.box, config.num_classes, self.dtype)
        self.mask = MaskHead(config.mask, config.num_classes, backbone.norm_epsilon, self.dtype)

    def pyramid(self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"], train: bool = False) -> Pyramid:
        """P2 to P6. Normalisation happens here, on the device; padding is 0 after it."""
        _, height, width, _ = images.shape
        assert height % 32 == 0 and width % 32 == 0, f"sides of a padded image must be multiples of 32, not {height} x {width}"
        mean, std = (jnp.asarray(value, jnp.float32) for value in (self.config.pixel_mean, self.config.pixel_std))
        inside = (jnp.arange(height) < sizes[:, 0, None])[:, :, None] & (jnp.arange(width) < sizes[:, 1, None])[:, None, :]
        images = jnp.where(inside[..., None], (images.astype(jnp.float32) - mean) / std, 0).astype(self.dtype)
        return self.fpn(self.backbone(images, train), train)

    def anchors(self, pyramid: Pyramid) -> list[Float[Array, "_a 4"]]:
        """The anchors of each level."""
        config = self.config.rpn
        levels = ops.pyramid_anchors(config.anchor_sizes, config.aspect_ratios, [level.shape[1:3] for level in pyramid], STRIDES)
        return [jnp.asarray(level) for level in levels]

    def objectness(self, pyramid: Pyramid) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Objectness logits and deltas of each level's anchors."""
        return self.rpn(pyramid)

    def proposals(self, logits, deltas, anchors, sizes: Int[Array, "B 2"], train: bool = False) -> Proposals:
        """Boxes for the second stage; no gradient flows through them."""
        config = self.config.rpn
        pre_nms, post_nms = (config.pre_nms_train, config.post_nms_train) if train else (config.pre_nms_test, config.post_nms_test)
        return select_proposals(logits, deltas, anchors, sizes, pre_nms, post_nms, config.nms_iou)

    def pool(self, pyramid: Pyramid, boxes: Float[Array, "B N 4"], size: int) -> Float[Array, "B N size size C"]:
        """RoI features, each RoI from the one level that fits its area."""
        config = self.config.roi
        levels = ops.assign_levels(boxes, 2, 5, config.canonical_size, config.canonical_level) - 2
        return ops.multilevel_roi_align(pyramid[:4], boxes, levels, STRIDES[:4], size, config.sampling_ratio, config.aligned)

    def classify(self, pyramid: Pyramid, boxes: Float[Array, "B N 4"]) -> tuple[Float[Array, "B N K+1"], Float[Array, "B N K 4"]]:
        """Class logits (background last) and class-specific deltas of each RoI."""
        rois = self.pool(pyramid, boxes, self.config.box.pool_size)
        logits, deltas = self.box(rois.reshape(-1, *rois.shape[2:]))
        return logits.reshape(*boxes.shape[:2], -1), deltas.reshape(*boxes.shape[:2], -1, 4)

    def mask_logits(
        self, pyramid: Pyramid, boxes: Float[Array, "B N 4"], classes: Int[Array, "B N"], train: bool = False
    ) -> Float[Array, "B N M M"]:
        """Mask logits of each RoI for one class each: classes do not compete (section 3)."""
        rois = self.pool(pyramid, boxes, self.config.mask.pool_size)
        logits = self.mask(rois.reshape(-1, *rois.shape[2:]), train)
        logits = jnp.take_along_axis(logits, classes.reshape(-1, 1, 1, 1), axis=-1)[..., 0]
        return logits.reshape(*boxes.shape[:2], *logits.shape[1:])

    def __call__(self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> Predictions:
        """Detects: boxes first, then masks for the boxes that are left (section 3.1, inference)."""
        pyramid = self.pyramid(images, sizes)
        proposals = self.proposals(*self.objectness(pyramid), self.anchors(pyramid), sizes)
        logits, deltas = self.classify(pyramid, proposals.boxes)
        boxes, scores, classes, valid = jax.vmap(self.detect)(logits, deltas, proposals.boxes, proposals.valid, sizes)
        masks = nn.sigmoid(self.mask_logits(pyramid, boxes, classes))
        return Predictions(boxes=boxes, scores=scores, classes=classes, valid=valid, masks=masks)

    def detect(
        self,
        logits: Float[Array, "P K+1"],
        deltas: Float[Array, "P K 4"],
        proposals: Float[Array, "P 4"],
        valid: Bool[Array, "P"],
        size: Int[Array, "2"],
    ) -> tuple[Float[Array, "D 4"], Float[Array, "D"], Int[Array, "D"], Bool[Array, "D"]]:
        """The best boxes of one image after score threshold and NMS within each class.

        NMS sees the ``candidates`` best (box, class) pairs; the result is exact whenever ``detections`` of them survive.
        """
        config, num_classes = self.config.box, self.config.num_classes
        scores = jnp.where(valid[:, None], nn.softmax(logits)[:, :-1], 0).reshape(-1)
        count = min(config.candidates, scores.size)
        index, exists = ops.top_k_of(scores > config.score_threshold, scores, count)
        roi, classes = index // num_classes, index % num_classes
        boxes = ops.decode(deltas[roi, classes], proposals[roi], config.delta_weights)
        boxes, scores = ops.clip(boxes, size[0], size[1]), scores[index]
        keep = ops.nms(boxes, scores, config.nms_iou, exists & ops.nonempty(boxes), classes)
        best, valid = ops.top_k_of(keep, scores, config.detections)
        empty = ~valid
        boxes = jnp.where(empty[:, None], 0, boxes[best])
        return boxes, jnp.where(empty, 0, scores[best]), jnp.where(empty, 0, classes[best]), valid


def initialise(model: MaskRCNN, key: Array) -> dict[str, Any]:
    """Fresh variables: "params" and, by the kind of normalisation, "frozen" or "batch_stats". One compiled program, so that it is quick."""

    def everything(model):
        images, sizes = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
        pyramid = model.pyramid(images, sizes)
        model.objectness(pyramid)
        boxes = jnp.zeros((1, 1, 4))
        model.classify(pyramid, boxes)
        model.mask_logits(pyramid, boxes, jnp.zeros((1, 1), jnp.int32))

    return jax.jit(nn.init(everything, model))(key)
