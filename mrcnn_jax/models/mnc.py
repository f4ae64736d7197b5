"""Multi-task network cascades (Dai et al., 2016): each stage reads what the one before predicted.

Stage 1 proposes boxes. Stage 2 warps the features of each and predicts a mask without a class. Stage 3
multiplies the features by it, classifies what is left, and regresses the box. Stages 4 and 5 are stages 2 and
3 again, with the same weights, for the regressed boxes. Boxes pass gradients, so the whole cascade is trained
at once.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config.model import STRIDES
from mrcnn_jax.models.detection import Candidates, Voters, vote_detections, voting_candidates
from mrcnn_jax.models.heads import MaskHead, dense
from mrcnn_jax.models.resnet import Res5
from mrcnn_jax.models.two_stage import Pyramid, TwoStage, Valid, per_roi
from mrcnn_jax.structures import Predictions, Proposals
from mrcnn_jax.typing import Array, Float, Int


class MNCInstances(NamedTuple):
    """Predictions of stages 2 and 3 for N boxes of each image, in float32."""

    mask_logits: Float[Array, "B N M M"]
    logits: Float[Array, "B N K1"]  # of the classifier that also looks at masks
    box_logits: Float[Array, "B N K1"]  # of the classifier of boxes, for training alone
    deltas: Float[Array, "B N K 4"]


class InstanceHead(nn.Module):
    """Two classifiers and class-specific box deltas from the features of both pathways."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "B N C"]
    ) -> tuple[Float[Array, "B N K1"], Float[Array, "B N K1"], Float[Array, "B N K 4"]]:
        """Computes logits of both classifiers (K1 = K + 1, background last), and deltas, in float32."""
        number, dtype = self.num_classes, self.dtype
        logits, box_logits = (dense(number + 1, 0.01, dtype, name) for name in ("classes", "box_classes"))
        deltas = dense(4 * number, 0.001, dtype, "deltas")(features)
        deltas = deltas.reshape(*features.shape[:2], number, 4)
        outputs = logits(features), box_logits(features), deltas
        return tuple(output.astype(jnp.float32) for output in outputs)


class MNC(TwoStage):
    """The cascade of five stages."""

    def setup(self):
        super().setup()
        config = self.config
        if config.tasks:
            def make_res5():
                return Res5(config.backbone, config.roi.res5_stride, self.dtype, self.remat)

            self.res5 = make_res5()
            if not config.mnc.share_res5:
                self.mask_res5 = make_res5()
            self.mask = MaskHead(config.mask, config.num_classes, config.backbone.norm_epsilon, self.dtype)
            self.instance = InstanceHead(config.num_classes, self.dtype)

    @property
    def proposal_gradient_clip(self) -> float | None:
        """Largest gradient from proposals to the RPN's deltas, 0 for any."""
        return self.config.mnc.gradient_clip

    def candidates(self, pyramid: Pyramid, proposals: Proposals, sizes: Int[Array, "B 2"]) -> Candidates:
        """Applies stages 2 to 5; the instances of both passes are voters."""
        first = self.instances(pyramid, proposals.boxes)
        boxes = self.regress(proposals.boxes, first, sizes)
        second = self.instances(pyramid, boxes)
        boxes = jnp.concatenate([proposals.boxes, boxes], axis=1)
        masks, logits = (
            jnp.concatenate(pair, axis=1)
            for pair in ((first.mask_logits, second.mask_logits), (first.logits, second.logits))
        )
        valid = jnp.tile(proposals.valid, (1, 2))[..., None]
        scores = jnp.where(valid, nn.softmax(logits)[..., :-1], 0)
        return voting_candidates(Voters(boxes, scores, nn.sigmoid(masks)), self.config.box)

    def select(self, candidates: Candidates) -> Predictions:
        """Selects detections, whose masks are voted on."""
        config = self.config
        return vote_detections(candidates, config, config.mnc.voting_iou, config.mnc.binarize_votes)

    def instances(
        self, pyramid: Pyramid, boxes: Float[Array, "B N 4"], valid: Valid = None, train: bool = False
    ) -> MNCInstances:
        """Predicts the mask, the class and the box deltas of what lies in each box (stages 2 and 3).

        Args:
            pyramid: the map of res4.
            boxes: RoIs; they get a gradient.
            valid: slots that hold a RoI, for batch norm in training.
            train: batch norm uses and updates the statistics of the batch.
        """
        config = self.config
        pool = config.pool_of("mask")
        features = ops.pool_rois(
            pyramid, boxes, jnp.zeros(boxes.shape[:2], jnp.int32), STRIDES[config.backbone.features],
            pool.size, operation=pool.operation, reduction=pool.reduction,
            sampling_ratio=pool.sampling_ratio, half_pixel=pool.half_pixel, box_gradient=True,
        )  # fmt: skip
        return self.instances_of(features, valid, train)

    def instances_of(
        self, features: Float[Array, "B N h w c"], valid: Valid = None, train: bool = False
    ) -> MNCInstances:
        """Predicts what the pooled features of each box show."""
        mask_logits = per_roi(self.mask, features, valid, train=train)[..., 0]
        masks = nn.sigmoid(mask_logits)  # twice the resolution of the features
        masks = masks.reshape(*masks.shape[:2], features.shape[2], 2, features.shape[3], 2).mean(axis=(3, 5))
        masked = features * masks[..., None].astype(features.dtype)
        mask_res5 = self.res5 if self.config.mnc.share_res5 else self.mask_res5
        pathways = [
            per_roi(layers, rois, valid, train=train).mean(axis=(2, 3))
            for layers, rois in ((mask_res5, masked), (self.res5, features))
        ]
        return MNCInstances(mask_logits, *self.instance(jnp.concatenate(pathways, axis=-1)))

    def regress(
        self, boxes: Float[Array, "B N 4"], found: MNCInstances, sizes: Int[Array, "B 2"]
    ) -> Float[Array, "B N 4"]:
        """Applies to each box the deltas of its best foreground class; gradients flow to both.

        The loss is a mean over this device's images, so its gradient has to be clipped at a share of what one
        image's is clipped at.
        """
        config, deltas = self.config, found.deltas
        best = jnp.argmax(found.logits[..., :-1], axis=-1)
        deltas = jnp.take_along_axis(deltas, best[..., None, None], axis=2)[:, :, 0]
        deltas = deltas / jnp.array([[config.box.delta_weights]], deltas.dtype)
        if config.mnc.gradient_clip:
            deltas = ops.clip_gradient(deltas, config.mnc.gradient_clip / len(deltas))
        boxes = ops.decode(deltas, boxes, max_scale=config.max_box_scale)
        return jax.vmap(lambda boxes, size: ops.clip(boxes, size[0], size[1]))(boxes, sizes)

    def init_second_stage(self, pyramid: Pyramid) -> None:
        """Calls every layer of the second stage once."""
        size = self.config.mask.pool.size
        self.instances_of(jnp.zeros((1, 1, size, size, pyramid[-1].shape[-1]), self.dtype))
