"""Mask R-CNN (He et al., 2017): branches for class and box, mask and keypoints over the features of RoIs."""

from dataclasses import replace

import flax.linen as nn
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import RoIPooling
from mrcnn_jax.config.model import ROI_LEVELS, STRIDES
from mrcnn_jax.models.detection import Candidates, select_candidates, suppress
from mrcnn_jax.models.fpn import FPN
from mrcnn_jax.models.heads import BoxHead, KeypointHead, MaskHead, select_class_masks
from mrcnn_jax.models.resnet import Res5
from mrcnn_jax.models.two_stage import Images, Pyramid, TwoStage, Valid, per_roi
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Float, Int


class MaskRCNN(TwoStage):
    """Mask R-CNN and its relatives: Faster R-CNN, and the RPN alone."""

    def setup(self):
        super().setup()
        config, backbone, tasks = self.config, self.config.backbone, self.config.tasks
        epsilon, dtype = backbone.norm_epsilon, self.dtype
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

    def pyramid(self, images: Images, sizes: Int[Array, "B 2"], train: bool = False) -> Pyramid:
        """Computes P2 to P6 of a feature pyramid, or the one map of c4, c5 and dc5."""
        stages = self.stages(images, sizes, train)
        if self.config.backbone.features != "fpn":
            return stages[-1:]
        height, width = images.shape[1:3]
        if height % 32 or width % 32:
            raise ValueError(
                f"sides of images must be multiples of 32 for a feature pyramid, not {height} x {width}"
            )
        return self.fpn(stages, train)

    def detect(self, pyramid: Pyramid, proposals: Proposals, sizes: Int[Array, "B 2"]) -> Predictions:
        """Detects boxes first, then masks and keypoints of the detected boxes (section 3.1, inference)."""
        found = self.select(self.candidates(pyramid, proposals, sizes))
        masks, keypoints = self.branches(pyramid, found.boxes, found.classes)
        return replace(found, masks=masks, keypoints=keypoints)

    def candidates(self, pyramid: Pyramid, proposals: Proposals, sizes: Int[Array, "B 2"]) -> Candidates:
        """Computes boxes with classes and scores, before NMS."""
        config = self.config
        logits, deltas = self.classify(self.roi_features(pyramid, proposals.boxes, config.pool_of("box")))
        found = select_candidates(logits, deltas, proposals, sizes, config.box, config.max_box_scale)
        return Candidates(found)

    def select(self, candidates: Candidates) -> Predictions:
        """Selects detections, without masks and keypoints."""
        return suppress(candidates.found, self.config.box)

    def branches(
        self, pyramid: Pyramid, boxes: Float[Array, "B D 4"], classes: Int[Array, "B D"]
    ) -> tuple[Float[Array, "B D M M"] | None, Float[Array, "B D J m m"] | None]:
        """Computes mask probabilities and keypoint logits of given boxes; None without such a branch."""
        config, pooled = self.config, {}  # branches with equal pooling share their features

        def features(branch):
            pool = config.pool_of(branch)
            if pool not in pooled:
                pooled[pool] = self.roi_features(pyramid, boxes, pool)
            return pooled[pool]

        masks = keypoints = None
        if "masks" in config.tasks:
            masks = self.mask_probabilities(self.mask_logits(features("mask")), classes)
        if "keypoints" in config.tasks:
            keypoints = self.keypoint_logits(features("keypoint"))
        return masks, keypoints

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
        return per_roi(self.res5, rois, valid, train=train) if features == "c4" else rois

    def classify(
        self, features: Float[Array, "B N h w c"], valid: Valid = None, train: bool = False
    ) -> tuple[Float[Array, "B N K1"], Float[Array, "B N K 4"]]:
        """Computes logits of K classes and background (K1 = K + 1), and box deltas, of each RoI."""
        return per_roi(self.box, features, valid, train=train)

    def mask_logits(
        self, features: Float[Array, "B N h w c"], valid: Valid = None, train: bool = False,
        classes: Int[Array, "B N"] | None = None,
    ) -> Float[Array, "B N M M k"]:  # fmt: skip
        """Computes the mask logits of each RoI, only of its class if ``classes`` are given (``MaskHead``)."""
        classes = None if classes is None else classes.reshape(-1)
        return per_roi(self.mask, features, valid, train=train, classes=classes)

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
        return per_roi(self.keypoint, features)

    def init_second_stage(self, pyramid: Pyramid) -> None:
        """Calls every layer of the second stage once."""
        config = self.config

        def features(pool):
            rois = jnp.zeros((1, 1, pool.size, pool.size, pyramid[-1].shape[-1]), self.dtype)
            return per_roi(self.res5, rois) if config.backbone.features == "c4" else rois

        if "boxes" in config.tasks:
            self.classify(features(config.box.pool))
        if "masks" in config.tasks:
            self.mask_logits(features(config.mask.pool))
        if "keypoints" in config.tasks:
            self.keypoint_logits(features(config.keypoint.pool))
