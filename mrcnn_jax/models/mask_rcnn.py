"""The assembled detector."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig, RoIPooling
from mrcnn_jax.config.model import ROI_LEVELS, STRIDES
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.heads import BoxHead, KeypointHead, MaskHead
from mrcnn_jax.models.resnet import Res5, ResNet
from mrcnn_jax.models.rpn import RPNHead, select_proposals
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Bool, Float, Int, UInt8

Pyramid = Sequence[Float[Array, "B _h _w C"]]
"""The feature maps that are read: P2 to P6 of a feature pyramid, or the one map of c4, c5 and dc5."""


class MaskRCNN(nn.Module):
    """Mask R-CNN and its relatives (ModelConfig). Calling it detects; training calls its parts (see training.step).

    For a feature pyramid the sides of the padded images are multiples of 32. ``remat``: in training, the backbone's blocks are computed again in the
    backward pass, and what is inside them takes no memory until then.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        config, backbone, tasks = self.config, self.config.backbone, self.config.tasks
        epsilon = backbone.norm_epsilon
        if config.rpn.proposals_from:
            self.proposer = MaskRCNN(replace(config, tasks=(), rpn=replace(config.rpn, proposals_from="")), self.dtype)
        else:
            self.rpn = RPNHead(len(config.rpn.aspect_ratios) * self._sizes_per_level, config.rpn.convolutions, self.dtype)
        self.backbone = ResNet(backbone, self.dtype, self.remat)
        if backbone.features == "fpn":
            self.fpn = FPN(backbone.pyramid_channels, backbone.pyramid_norm, epsilon, self.dtype)
        if backbone.features == "c4" and tasks:
            self.res5 = Res5(backbone, config.roi.res5_stride, self.dtype, self.remat)
        if "boxes" in tasks:
            self.box = BoxHead(config.box, config.num_classes, epsilon, self.dtype)
        if "masks" in tasks:
            self.mask = MaskHead(config.mask, config.num_classes, epsilon, self.dtype)
        if "keypoints" in tasks:
            self.keypoint = KeypointHead(config.keypoint, self.dtype)

    @property
    def _sizes_per_level(self):
        return 1 if self.config.backbone.features == "fpn" else len(self.config.rpn.anchor_sizes)

    def pyramid(self, images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], sizes: Int[Array, "B 2"], train: bool = False) -> Pyramid:
        """The feature maps. Images are normalised here, on the device; padding is 0 after it."""
        _, height, width, _ = images.shape
        fits = self.config.backbone.features != "fpn" or height % 32 == width % 32 == 0
        assert fits, f"sides of a padded image must be multiples of 32 for a feature pyramid, not {height} x {width}"
        if self.config.channel_order == "bgr":
            images = images[..., ::-1]
        mean, std = (jnp.asarray(value, jnp.float32) for value in (self.config.pixel_mean, self.config.pixel_std))
        inside = (jnp.arange(height) < sizes[:, 0, None])[:, :, None] & (jnp.arange(width) < sizes[:, 1, None])[:, None, :]
        images = jnp.where(inside[..., None], (images.astype(jnp.float32) - mean) / std, 0).astype(self.dtype)
        stages = self.backbone(images, train)
        return self.fpn(stages, train) if self.config.backbone.features == "fpn" else stages[-1:]

    def anchors(self, pyramid: Pyramid, padded: tuple[int, int]) -> list[Float[Array, "_a 4"]]:
        """The anchors of each feature map; ``padded``: height and width of the images."""
        config, conventions, features = self.config.rpn, self.config.conventions, self.config.backbone.features
        sizes = config.anchor_sizes if features == "fpn" else (config.anchor_sizes,)
        grids, strides = [level.shape[1:3] for level in pyramid], STRIDES[features]
        if conventions.anchor_strides == "grid":
            strides = [(padded[0] // rows, padded[1] // columns) for rows, columns in grids]
        levels = ops.pyramid_anchors(sizes, config.aspect_ratios, grids, strides, conventions.anchor_rounding, conventions.anchor_offset)
        return [jnp.asarray(level) for level in levels]

    def objectness(self, pyramid: Pyramid) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Objectness logits and deltas of each feature map's anchors."""
        return self.rpn(pyramid)

    def proposals(self, logits, deltas, anchors, sizes: Int[Array, "B 2"], train: bool = False) -> Proposals:
        """Boxes for the second stage; no gradient flows through them."""
        config = self.config.rpn
        pre_nms, post_nms = (config.pre_nms_train, config.post_nms_train) if train else (config.pre_nms_test, config.post_nms_test)
        return select_proposals(logits, deltas, anchors, sizes, pre_nms, post_nms, config.nms_iou, config.min_size, self.config.max_box_scale)

    def frozen_proposals(self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"], train: bool = False) -> Proposals:
        """Proposals of the separately trained RPN, from its own backbone, neither of which learns; ``train`` sets how many."""
        pyramid = self.proposer.pyramid(images, sizes)
        return self.proposer.proposals(*self.proposer.objectness(pyramid), self.proposer.anchors(pyramid, images.shape[1:3]), sizes, train)

    # ``real``: which slots hold a RoI, for the batch norm of training (models.norm); at inference nothing depends on it

    def roi_features(
        self, pyramid: Pyramid, boxes: Float[Array, "B N 4"], pool: RoIPooling, real: Bool[Array, "B N"] | None = None, train: bool = False
    ) -> Float[Array, "B N h w c"]:
        """What a head sees of each RoI: its bins from the one level that fits its area, and for c4 what res5 makes of them."""
        config, features = self.config.roi, self.config.backbone.features
        (low, high), (finest, _) = config.levels, ROI_LEVELS[features]
        levels = ops.assign_levels(boxes, low, high, config.canonical_size, config.canonical_level, self.config.conventions.level_epsilon) - low
        if self.config.conventions.roi_inclusive:
            boxes = boxes - jnp.asarray([0, 0, 1, 1], boxes.dtype)
        read = slice(low - finest, high - finest + 1)
        rois = ops.pool_rois(pyramid[read], boxes, levels, STRIDES[features][read], pool.size, operation=pool.operation, reduction=pool.reduction,
                             sampling_ratio=pool.sampling_ratio, aligned=pool.half_pixel)  # fmt: skip
        return _each(self.res5, rois, real, train=train) if features == "c4" else rois

    def classify(
        self, features: Float[Array, "B N h w c"], real: Bool[Array, "B N"] | None = None, train: bool = False
    ) -> tuple[Float[Array, "B N K+1"], Float[Array, "B N K 4"]]:
        """Class logits (background last) and class-specific deltas of each RoI."""
        return _each(self.box, features, real, train=train)

    def mask_logits(self, features: Float[Array, "B N h w c"], real: Bool[Array, "B N"] | None = None, train: bool = False) -> Float[Array, "B N M M k"]:
        """Mask logits of each RoI: for each class; for all of them; or for each and, last, for background (models.heads)."""
        return _each(self.mask, features, real, train=train)

    def mask_probabilities(self, logits: Float[Array, "B N M M k"], classes: Int[Array, "B N"]) -> Float[Array, "B N M M"]:
        """The mask of each RoI's own class."""
        config = self.config.mask
        if config.loss == "softmax":
            return own_class_masks(nn.softmax(logits), classes)
        return nn.sigmoid(logits[..., 0] if config.class_agnostic else own_class_masks(logits, classes))

    def keypoint_logits(self, features: Float[Array, "B N h w c"]) -> Float[Array, "B N J m m"]:
        """Logits over the positions inside each RoI, for each keypoint."""
        return _each(self.keypoint, features)

    def __call__(self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> Predictions:
        """Detects: boxes first, then masks and keypoints for the boxes that are left (section 3.1, inference).

        Without any task the proposals are the detections, of class 0.
        """
        config = self.config
        pyramid = self.pyramid(images, sizes)
        if config.rpn.proposals_from:
            proposals = self.frozen_proposals(images, sizes)
        else:
            proposals = self.proposals(*self.objectness(pyramid), self.anchors(pyramid, images.shape[1:3]), sizes)
        if not config.tasks:
            scores = jnp.where(proposals.valid, nn.sigmoid(proposals.scores), 0)
            return Predictions(boxes=proposals.boxes, scores=scores, classes=jnp.zeros(scores.shape, jnp.int32), valid=proposals.valid)

        logits, deltas = self.classify(self.roi_features(pyramid, proposals.boxes, config.pool_of("box")))
        boxes, scores, classes, valid = jax.vmap(self.detect)(logits, deltas, proposals.boxes, proposals.valid, sizes)
        features = {pool: self.roi_features(pyramid, boxes, pool) for pool in self._branch_pools()}
        masks = keypoints = None
        if "masks" in config.tasks:
            masks = self.mask_probabilities(self.mask_logits(features[config.pool_of("mask")]), classes)
        if "keypoints" in config.tasks:
            keypoints = self.keypoint_logits(features[config.pool_of("keypoint")])
        return Predictions(boxes=boxes, scores=scores, classes=classes, valid=valid, masks=masks, keypoints=keypoints)

    def _layers(self):
        """Every layer once, without what lies between them and has no variables (proposals, pooling, NMS): most of the time to trace a detection."""
        config, images, sizes = self.config, jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
        pyramid = self.pyramid(images, sizes)
        if config.rpn.proposals_from:
            self.proposer.objectness(self.proposer.pyramid(images, sizes))
        else:
            self.objectness(pyramid)

        def features(pool):
            rois = jnp.zeros((1, 1, pool.size, pool.size, pyramid[-1].shape[-1]), self.dtype)
            return _each(self.res5, rois) if config.backbone.features == "c4" else rois

        if "boxes" in config.tasks:
            self.classify(features(config.box.pool))
        if "masks" in config.tasks:
            self.mask_logits(features(config.mask.pool))
        if "keypoints" in config.tasks:
            self.keypoint_logits(features(config.keypoint.pool))

    def _branch_pools(self):
        """How mask and keypoint branch read their RoIs: once, where both do it alike."""
        branches = {"masks": "mask", "keypoints": "keypoint"}
        return dict.fromkeys(self.config.pool_of(branches[task]) for task in self.config.tasks if task in branches)

    def detect(
        self,
        logits: Float[Array, "P K+1"],
        deltas: Float[Array, "P K 4"],
        proposals: Float[Array, "P 4"],
        valid: Bool[Array, "P"],
        size: Int[Array, "2"],
    ) -> tuple[Float[Array, "D 4"], Float[Array, "D"], Int[Array, "D"], Bool[Array, "D"]]:
        """The best boxes of one image after score threshold and NMS within each class.

        NMS sees the ``max_candidates`` best (box, class) pairs; the result is exact whenever ``max_detections`` of them survive.
        """
        config, num_classes = self.config.box, self.config.num_classes
        scores = jnp.where(valid[:, None], nn.softmax(logits)[:, :-1], 0).reshape(-1)
        count = min(config.max_candidates, scores.size)
        index, exists = ops.masked_top_k(scores > config.score_threshold, scores, count)
        roi, classes = index // num_classes, index % num_classes
        boxes = ops.decode(deltas[roi, classes], proposals[roi], config.delta_weights, self.config.max_box_scale)
        boxes, scores = ops.clip(boxes, size[0], size[1]), scores[index]
        keep = ops.nms(boxes, scores, config.nms_iou, exists & ops.is_nonempty(boxes, config.min_size), classes)
        best, valid = ops.masked_top_k(keep, scores, config.max_detections)
        empty = ~valid
        boxes = jnp.where(empty[:, None], 0, boxes[best])
        return boxes, jnp.where(empty, 0, scores[best]), jnp.where(empty, 0, classes[best]), valid


def own_class_masks(masks: Float[Array, "*n M M k"], classes: Int[Array, "*n"]) -> Float[Array, "*n M M"]:
    """Of each RoI's masks the one of its class."""
    return jnp.take_along_axis(masks, classes[..., None, None, None], axis=-1)[..., 0]


def _each(head, rois, real=None, **mode):
    """A head, which knows one axis of RoIs, on the RoIs of several images."""
    lead = rois.shape[:2]
    out = head(rois.reshape(-1, *rois.shape[2:]), None if real is None else real.reshape(-1), **mode)
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), out)


def initialise(model: MaskRCNN, key: Array) -> dict[str, Any]:
    """Fresh variables: "params" and, by the kind of normalisation, "frozen" or "batch_stats". One compiled program, so that it is quick."""
    return jax.jit(nn.init(MaskRCNN._layers, model))(key)
