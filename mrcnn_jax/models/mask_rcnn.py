"""The assembled detector."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig, RoIPooling
from mrcnn_jax.config.model import ROI_LEVELS, STRIDES
from mrcnn_jax.models.detection import select_detections
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.heads import BoxHead, KeypointHead, MaskHead, select_class_masks
from mrcnn_jax.models.resnet import Res5, ResNet
from mrcnn_jax.models.rpn import RPNHead, select_proposals
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Bool, Float, Int, PRNGKeyArray, UInt8

Images = UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
Valid = Bool[Array, "B N"] | None
"""RoI slots that hold a RoI; None is all of them."""
Pyramid = Sequence[Float[Array, "B _h _w C"]]
"""The feature maps: P2 to P6 of a feature pyramid, or the one map of c4, c5 and dc5."""


class MaskRCNN(nn.Module):
    """Mask R-CNN and its relatives. Calling it detects; training calls its parts (``training.losses``).

    Attributes:
        config: the detector.
        dtype: of the computation; parameters, logits and boxes are float32.
        remat: recompute the backbone's blocks in the backward pass.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        config, backbone, tasks = self.config, self.config.backbone, self.config.tasks
        epsilon, dtype = backbone.norm_epsilon, self.dtype
        if config.rpn.proposals_from:
            rpn_alone = replace(config, tasks=(), rpn=replace(config.rpn, proposals_from=""))
            self.proposer = MaskRCNN(rpn_alone, dtype)
        else:
            sizes = 1 if backbone.features == "fpn" else len(config.rpn.anchor_sizes)
            self.rpn = RPNHead(len(config.rpn.aspect_ratios) * sizes, config.rpn.convolutions, dtype)
        self.backbone = ResNet(backbone, dtype, self.remat)
        if backbone.features == "fpn":
            self.fpn = FPN(backbone.pyramid_channels, backbone.pyramid_norm, epsilon, dtype)
        if backbone.features == "c4" and tasks:
            self.res5 = Res5(backbone, config.roi.res5_stride, dtype, self.remat)
        if "boxes" in tasks:
            self.box = BoxHead(config.box, config.num_classes, epsilon, dtype)
        if "masks" in tasks:
            self.mask = MaskHead(config.mask, config.num_classes, epsilon, dtype)
        if "keypoints" in tasks:
            self.keypoint = KeypointHead(config.keypoint, dtype)

    def __call__(self, images: Images, sizes: Int[Array, "B 2"]) -> Predictions:
        """Detects: boxes first, then masks and keypoints of the detected boxes (section 3.1, inference).

        Without any task the proposals are the detections, of class 0.

        Args:
            images: RGB, 0 to 255, padded at the right and at the bottom; H and W are multiples of 32 for fpn.
            sizes: height and width before padding.

        Raises:
            ValueError: for images or sizes of another shape.
        """
        config = self.config
        pyramid = self.pyramid(images, sizes)
        if config.rpn.proposals_from:
            proposals = self.frozen_proposals(images, sizes)
        else:
            anchors = self.anchors(pyramid, images.shape[1:3])
            proposals = self.proposals(*self.objectness(pyramid), anchors, sizes)
        if not config.tasks:
            scores = jnp.where(proposals.valid, nn.sigmoid(proposals.scores), 0)
            classes = jnp.zeros(scores.shape, jnp.int32)
            return Predictions(boxes=proposals.boxes, scores=scores, classes=classes, valid=proposals.valid)

        logits, deltas = self.classify(self.roi_features(pyramid, proposals.boxes, config.pool_of("box")))
        found = select_detections(logits, deltas, proposals, sizes, config.box, config.max_box_scale)
        pooled = {}  # branches with equal pooling share their features

        def branch_features(branch):
            pool = config.pool_of(branch)
            if pool not in pooled:
                pooled[pool] = self.roi_features(pyramid, found.boxes, pool)
            return pooled[pool]

        masks = keypoints = None
        if "masks" in config.tasks:
            masks = self.mask_probabilities(self.mask_logits(branch_features("mask")), found.classes)
        if "keypoints" in config.tasks:
            keypoints = self.keypoint_logits(branch_features("keypoint"))
        return replace(found, masks=masks, keypoints=keypoints)

    def pyramid(self, images: Images, sizes: Int[Array, "B 2"], train: bool = False) -> Pyramid:
        """Computes the feature maps. Images are normalised here, on the device, after which padding is 0."""
        check_shape("images", images, "B", "H", "W", 3, note="RGB, channels last")
        check_shape("sizes", sizes, images.shape[0], 2)
        config, (_, height, width, _) = self.config, images.shape
        if config.backbone.features == "fpn" and (height % 32 or width % 32):
            raise ValueError(
                f"sides of images must be multiples of 32 for a feature pyramid, not {height} x {width}"
            )
        if config.channel_order == "bgr":
            images = images[..., ::-1]
        mean, std = (jnp.array([[[value]]], jnp.float32) for value in (config.pixel_mean, config.pixel_std))
        rows, columns = jnp.arange(height)[None] < sizes[:, :1], jnp.arange(width)[None] < sizes[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        normalised = (images.astype(jnp.float32) - mean) / std
        stages = self.backbone(jnp.where(inside, normalised, 0).astype(self.dtype), train)
        return self.fpn(stages, train) if config.backbone.features == "fpn" else stages[-1:]

    def anchors(self, pyramid: Pyramid, padded: tuple[int, int]) -> list[Float[Array, "_a 4"]]:
        """Returns the anchors of each feature map, of images of (height, width) ``padded``."""
        config, conventions = self.config.rpn, self.config.conventions
        features = self.config.backbone.features
        sizes = config.anchor_sizes if features == "fpn" else (config.anchor_sizes,)
        grids, strides = [level.shape[1:3] for level in pyramid], STRIDES[features]
        if conventions.anchor_strides == "grid":
            strides = [(padded[0] // rows, padded[1] // columns) for rows, columns in grids]
        rounding, offset = conventions.anchor_rounding, conventions.anchor_offset
        levels = ops.pyramid_anchors(sizes, config.aspect_ratios, grids, strides, rounding, offset)
        return [jnp.asarray(level) for level in levels]

    def objectness(self, pyramid: Pyramid) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Computes objectness logits and deltas of each feature map's anchors."""
        return self.rpn(pyramid)

    def proposals(
        self, logits: Sequence[Float[Array, "B _a"]], deltas: Sequence[Float[Array, "B _a 4"]],
        anchors: Sequence[Float[Array, "_a 4"]], sizes: Int[Array, "B 2"], train: bool = False,
    ) -> Proposals:  # fmt: skip
        """Selects the boxes for the second stage, as many as in training if ``train``."""
        config = self.config.rpn
        pre_nms, post_nms = config.pre_nms_test, config.post_nms_test
        if train:
            pre_nms, post_nms = config.pre_nms_train, config.post_nms_train
        return select_proposals(
            logits, deltas, anchors, sizes, pre_nms, post_nms, config.nms_iou, config.min_size,
            self.config.max_box_scale,
        )  # fmt: skip

    def frozen_proposals(self, images: Images, sizes: Int[Array, "B 2"], train: bool = False) -> Proposals:
        """Computes the proposals of a separately trained, frozen RPN with a backbone of its own."""
        proposer = self.proposer
        pyramid = proposer.pyramid(images, sizes)
        anchors = proposer.anchors(pyramid, images.shape[1:3])
        return proposer.proposals(*proposer.objectness(pyramid), anchors, sizes, train)

    def roi_features(
        self, pyramid: Pyramid, boxes: Float[Array, "B N 4"], pool: RoIPooling, valid: Valid = None,
        train: bool = False,
    ) -> Float[Array, "B N h w c"]:  # fmt: skip
        """Pools each RoI from the level that fits its area (FPN, equation 1), then applies res5 if c4.

        Args:
            pyramid: of the images.
            boxes: RoIs.
            pool: of the branch (``ModelConfig.pool_of``).
            valid: slots that hold a RoI, for batch norm in training.
            train: batch norm uses and updates the statistics of the batch.
        """
        check_shape("boxes", boxes, "B", "N", 4)
        config, conventions = self.config.roi, self.config.conventions
        features = self.config.backbone.features
        (low, high), (finest, _) = config.levels, ROI_LEVELS[features]
        levels = ops.assign_levels(
            boxes, low, high, config.canonical_size, config.canonical_level, conventions.level_epsilon
        )
        if conventions.roi_inclusive:
            boxes = boxes - jnp.array([[[0, 0, 1, 1]]], boxes.dtype)
        used = slice(low - finest, high - finest + 1)
        rois = ops.pool_rois(
            pyramid[used], boxes, levels - low, STRIDES[features][used], pool.size, operation=pool.operation,
            reduction=pool.reduction, sampling_ratio=pool.sampling_ratio, half_pixel=pool.half_pixel,
        )  # fmt: skip
        return _per_roi(self.res5, rois, valid, train=train) if features == "c4" else rois

    def classify(
        self, features: Float[Array, "B N h w c"], valid: Valid = None, train: bool = False
    ) -> tuple[Float[Array, "B N K1"], Float[Array, "B N K 4"]]:
        """Computes logits of K classes and background (K1 = K + 1), and box deltas, of each RoI."""
        return _per_roi(self.box, features, valid, train=train)

    def mask_logits(
        self, features: Float[Array, "B N h w c"], valid: Valid = None, train: bool = False
    ) -> Float[Array, "B N M M k"]:
        """Computes the mask logits of each RoI (``MaskHead``)."""
        return _per_roi(self.mask, features, valid, train=train)

    def mask_probabilities(
        self, logits: Float[Array, "B N M M k"], classes: Int[Array, "B N"]
    ) -> Float[Array, "B N M M"]:
        """Computes the probability of each RoI's own class at every position of its mask."""
        config = self.config.mask
        if config.loss == "softmax":
            return select_class_masks(nn.softmax(logits), classes)
        return nn.sigmoid(logits[..., 0] if config.class_agnostic else select_class_masks(logits, classes))

    def keypoint_logits(self, features: Float[Array, "B N h w c"]) -> Float[Array, "B N J m m"]:
        """Computes logits over the positions of each RoI, for each keypoint."""
        return _per_roi(self.keypoint, features)

    def init_layers(self) -> None:
        """Calls every layer once, without proposals, pooling and NMS, which are slow to trace."""
        config = self.config
        images, sizes = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
        pyramid = self.pyramid(images, sizes)
        if config.rpn.proposals_from:
            self.proposer.objectness(self.proposer.pyramid(images, sizes))
        else:
            self.objectness(pyramid)

        def features(pool):
            rois = jnp.zeros((1, 1, pool.size, pool.size, pyramid[-1].shape[-1]), self.dtype)
            return _per_roi(self.res5, rois) if config.backbone.features == "c4" else rois

        if "boxes" in config.tasks:
            self.classify(features(config.box.pool))
        if "masks" in config.tasks:
            self.mask_logits(features(config.mask.pool))
        if "keypoints" in config.tasks:
            self.keypoint_logits(features(config.keypoint.pool))


def init_variables(model: MaskRCNN, key: PRNGKeyArray) -> dict[str, Any]:
    """Returns new variables: "params" and, by the kind of normalisation, "frozen" or "batch_stats"."""
    return jitted_init(model)(key)


@lru_cache(maxsize=16)
def jitted_init(model: MaskRCNN) -> jax.stages.Wrapped:
    """Returns ``init_variables`` of a model as a jitted function of the key, the same for equal models."""
    return jax.jit(nn.init(MaskRCNN.init_layers, model))


def _per_roi(head, rois, valid=None, **mode):
    """Applies a head, which has one axis of RoIs, to the RoIs of several images."""
    lead = rois.shape[:2]
    out = head(rois.reshape(-1, *rois.shape[2:]), None if valid is None else valid.reshape(-1), **mode)
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), out)
