"""The first stage that all systems share: backbone, region proposal network and proposals."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.config.validation import require
from mrcnn_jax.models.detection import Candidates
from mrcnn_jax.models.resnet import ResNet
from mrcnn_jax.models.rpn import RPNHead, anchor_layout, select_proposals
from mrcnn_jax.ops.checks import check_shape
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Bool, Float, Int, UInt8

Images = UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"]
Valid = Bool[Array, "B N"] | None
"""RoI slots that hold a RoI; None is all of them."""
Pyramid = Sequence[Float[Array, "B _h _w _c"]]
"""The feature maps: P2 to P6 of a feature pyramid, or one map; FCIS has two, of res4 and of res5."""


class TwoStage(nn.Module):
    """A detector of two stages. Calling it detects; training calls its parts (``training.losses``).

    Attributes:
        config: the detector.
        dtype: of the computation; parameters, logits and boxes are float32.
        remat: recompute the backbone's blocks in the backward pass.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        config, backbone = self.config, self.config.backbone
        rule = "must be greater than 0 in a network; 0 takes the number from the data set of a training run"
        require(not config.tasks or config.num_classes > 0, f"model.num_classes {rule}")
        known = "keypoints" not in config.tasks or config.keypoint.num_keypoints > 0
        require(known, f"model.keypoint.num_keypoints {rule}")
        if config.rpn.proposals_from:
            rpn_alone = replace(config, tasks=(), rpn=replace(config.rpn, proposals_from=""))
            self.proposer = type(self)(rpn_alone, self.dtype)
        else:
            sizes = 1 if backbone.features == "fpn" else len(config.rpn.anchor_sizes)
            self.rpn = RPNHead(len(config.rpn.aspect_ratios) * sizes, config.rpn.convolutions, self.dtype)
        self.backbone = ResNet(backbone, self.dtype, self.remat)

    def __call__(self, images: Images, sizes: Int[Array, "B 2"]) -> Predictions:
        """Detects. Without any task the proposals are the detections, of class 0.

        Args:
            images: RGB, 0 to 255, padded at the right and at the bottom; H and W are multiples of 32 for fpn.
            sizes: height and width before padding.

        Raises:
            ValueError: for images or sizes of another shape.
        """
        pyramid = self.pyramid(images, sizes)
        proposals = self.find_proposals(pyramid, images, sizes)
        if self.config.tasks:
            return self.detect(pyramid, proposals, sizes)
        scores = jnp.where(proposals.valid, nn.sigmoid(proposals.scores), 0)
        classes = jnp.zeros(scores.shape, jnp.int32)
        return Predictions(boxes=proposals.boxes, scores=scores, classes=classes, valid=proposals.valid)

    def find_proposals(self, pyramid: Pyramid, images: Images, sizes: Int[Array, "B 2"]) -> Proposals:
        """Computes the boxes for the second stage, or those of the frozen RPN if there is one."""
        if self.config.rpn.proposals_from:
            return self.frozen_proposals(images, sizes)
        anchors = self.anchors(pyramid, images.shape[1:3])
        return self.proposals(*self.objectness(pyramid), anchors, sizes)

    def detect(self, pyramid: Pyramid, proposals: Proposals, sizes: Int[Array, "B 2"]) -> Predictions:
        """Applies the second stage to the proposals."""
        return self.select(self.candidates(pyramid, proposals, sizes))

    def candidates(self, pyramid: Pyramid, proposals: Proposals, sizes: Int[Array, "B 2"]) -> Candidates:
        """Computes what the second stage detects, before NMS."""
        raise NotImplementedError

    def select(self, candidates: Candidates) -> Predictions:
        """Selects detections among the candidates, of one view of each image or of several."""
        raise NotImplementedError

    def pyramid(self, images: Images, sizes: Int[Array, "B 2"], train: bool = False) -> Pyramid:
        """Computes the feature maps that anchors and RoIs read."""
        return self.stages(images, sizes, train)[-1:]

    @property
    def proposal_gradient_clip(self) -> float | None:
        """Largest gradient from proposals to the RPN's deltas, 0 for any; None lets none flow."""
        return None

    @nn.nowrap
    def stages(
        self, images: Images, sizes: Int[Array, "B 2"], train: bool
    ) -> list[Float[Array, "B _h _w _c"]]:
        """Computes the backbone's outputs. Images are normalised here, on the device; padding is then 0."""
        check_shape("images", images, "B", "H", "W", 3, note="RGB, channels last")
        check_shape("sizes", sizes, images.shape[0], 2)
        if 0 in images.shape:
            raise ValueError(f"images must hold a pixel of at least one image, not {list(images.shape)}")
        config, (_, height, width, _) = self.config, images.shape
        if config.channel_order == "bgr":
            images = images[..., ::-1]
        mean, std = (jnp.array([[[value]]], jnp.float32) for value in (config.pixel_mean, config.pixel_std))
        rows, columns = jnp.arange(height)[None] < sizes[:, :1], jnp.arange(width)[None] < sizes[:, 1:]
        inside = rows[:, :, None, None] & columns[:, None, :, None]
        normalised = (images.astype(jnp.float32) - mean) / std
        return self.backbone(jnp.where(inside, normalised, 0).astype(self.dtype), train)

    def anchors(self, pyramid: Pyramid, padded: tuple[int, int]) -> list[Float[Array, "_a 4"]]:
        """Returns the anchors of each feature map, of images of (height, width) ``padded``."""
        config, conventions = self.config, self.config.conventions
        grids = [level.shape[1:3] for level in pyramid]
        sizes, strides = anchor_layout(config, grids, padded)
        rounding, offset = conventions.anchor_rounding, conventions.anchor_offset
        levels = ops.pyramid_anchors(sizes, config.rpn.aspect_ratios, grids, strides, rounding, offset)
        return [jnp.asarray(level) for level in levels]

    def objectness(self, pyramid: Pyramid) -> tuple[list[Float[Array, "B _a"]], list[Float[Array, "B _a 4"]]]:
        """Computes objectness logits and deltas of each feature map's anchors."""
        return self.rpn(pyramid)

    def objectness_at(
        self, pyramid: Pyramid, index: Int[Array, "B S"]
    ) -> tuple[Float[Array, "B S"], Float[Array, "B S 4"]]:
        """Computes objectness logits and deltas of a few anchors, given by their number among all."""
        return self.rpn.at_anchors(pyramid, index)

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
            self.config.max_box_scale, self.proposal_gradient_clip,
        )  # fmt: skip

    def frozen_proposals(self, images: Images, sizes: Int[Array, "B 2"], train: bool = False) -> Proposals:
        """Computes the proposals of a separately trained, frozen RPN with a backbone of its own."""
        proposer = self.proposer
        pyramid = proposer.pyramid(images, sizes)
        anchors = proposer.anchors(pyramid, images.shape[1:3])
        proposals = proposer.proposals(*proposer.objectness(pyramid), anchors, sizes, train)
        return jax.lax.stop_gradient(proposals)

    def init_layers(self) -> None:
        """Calls every layer once, without proposals, pooling and NMS, which are slow to trace."""
        images, sizes = jnp.zeros((1, 64, 64, 3), jnp.uint8), jnp.full((1, 2), 64)
        pyramid = self.pyramid(images, sizes)
        if self.config.rpn.proposals_from:
            self.proposer.objectness(self.proposer.pyramid(images, sizes))
        else:
            self.objectness(pyramid)
        if self.config.tasks:
            self.init_second_stage(pyramid)

    def init_second_stage(self, pyramid: Pyramid) -> None:
        """Calls every layer of the second stage once."""
        raise NotImplementedError


def per_roi(head, rois, valid=None, **mode):
    """Applies a head, which has one axis of RoIs, to the RoIs of several images."""
    lead = rois.shape[:2]
    out = head(rois.reshape(-1, *rois.shape[2:]), None if valid is None else valid.reshape(-1), **mode)
    return jax.tree.map(lambda leaf: leaf.reshape(*lead, *leaf.shape[1:]), out)
