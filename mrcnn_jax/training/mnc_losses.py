"""The losses of multi-task network cascades: the same four for each pass over stages 2 and 3."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.mnc import MNC, MNCInstances
from mrcnn_jax.models.two_stage import Pyramid
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training.loss_functions import Term, box_loss, class_loss, mask_loss
from mrcnn_jax.training.targets import RoITargets, roi_targets
from mrcnn_jax.typing import Array, Bool, Float, Int, Key


def mnc_losses(
    model: MNC, pyramid: Pyramid, proposals: Proposals, batch: Batch, keys: Key[jax.Array, "B"],
    train: bool = True,
) -> dict[str, Term]:  # fmt: skip
    """Computes the losses of stages 2 and 3 and, of the regressed boxes, those of stages 4 and 5.

    The second pass takes all RoIs of the first and the objects' own boxes, as many as the first has RoIs,
    foreground first; its losses have the suffix _2.
    """
    config = model.config
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    boxes, targets = _sample(keys[:, 0], proposals, batch, config)
    found = model.instances(pyramid, boxes, targets.valid, train=train)
    terms = _instance_losses(found, targets, batch, config)
    if config.mnc.training_stages == 3:
        return terms
    regressed = model.regress(boxes, found, batch.sizes)
    valid = targets.valid & ops.is_nonempty(regressed)
    proposals = Proposals(boxes=regressed, scores=jnp.zeros(valid.shape), valid=valid)
    everything = replace(config, roi=replace(config.roi, positive_fraction=1.0))
    boxes, targets = _sample(keys[:, 1], proposals, batch, everything)
    found = model.instances(pyramid, boxes, targets.valid, train=train)
    again = _instance_losses(found, targets, batch, config)
    return terms | {f"{name}_2": term for name, term in again.items()}


def _sample(keys, proposals, batch, config) -> tuple[Float[Array, "B R 4"], RoITargets]:
    """Samples RoIs; their boxes pass gradients to the proposals, their targets do not."""
    fixed = jax.lax.stop_gradient(proposals)
    targets = jax.vmap(lambda *image: roi_targets(*image, config))(keys, fixed, batch.examples)
    targets = jax.lax.stop_gradient(targets)
    candidates = jnp.concatenate([proposals.boxes, batch.boxes], axis=1)
    boxes = jnp.take_along_axis(candidates, targets.index[..., None], axis=1)
    return jnp.where(targets.valid[..., None], boxes, 0), targets


def _instance_losses(
    found: MNCInstances, targets: RoITargets, batch: Batch, config: ModelConfig
) -> dict[str, Term]:
    """Computes the losses of masks, of both classifiers, and of boxes, for one pass."""
    background, slots = config.num_classes, targets.mask_valid.shape[1]

    def of_all(array):  # the others are not positive
        return jnp.pad(array, ((0, 0), (0, targets.valid.shape[1] - slots)))

    masks = nn.sigmoid(jax.lax.stop_gradient(found.mask_logits[:, :slots])) >= config.mask.threshold
    is_good = of_all(mask_overlaps(masks, targets, batch) >= config.mnc.mask_iou)
    classes = jnp.where(is_good & targets.positive, targets.classes, background)
    unknown = of_all(targets.positive[:, :slots] & ~targets.mask_valid)
    labels = jnp.minimum(targets.classes, background - 1)  # those of background do not count
    deltas = jnp.take_along_axis(found.deltas, labels[..., None, None], axis=2)[:, :, 0]
    rois, known = targets.valid, targets.valid & ~unknown
    masks = mask_loss(found.mask_logits[:, :slots], targets.masks, targets.mask_valid)
    box = box_loss(deltas, targets.deltas, targets.positive, config.box.smooth_l1_beta)
    return {
        "loss_mask": Term(config.mnc.mask_loss_weight * masks, targets.mask_valid.sum()),
        "loss_class": Term(class_loss(found.logits, classes, known), known.sum()),
        "loss_box_class": Term(class_loss(found.box_logits, targets.classes, rois), rois.sum()),
        "loss_box": Term(box, rois.sum()),
    }


def mask_overlaps(masks: Bool[Array, "B F M M"], targets: RoITargets, batch: Batch) -> Float[Array, "B F"]:
    """Computes the IoU of each RoI's mask with that of its object, which may reach beyond the RoI.

    Pixels are those of the RoI's M x M grid inside it; the object's area outside is that of its own mask.
    """
    sides = batch.boxes[..., 2:] - batch.boxes[..., :2]
    object_areas = batch.masks.astype(jnp.float32).mean(axis=(2, 3)) * sides[..., 0] * sides[..., 1]
    matched: Int[Array, "B F"] = targets.matched[:, : masks.shape[1]]
    object_areas = jnp.take_along_axis(object_areas, matched, axis=1)
    boxes = targets.boxes[:, : masks.shape[1]]
    box_areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    inside = masks & (targets.masks >= 0.5)
    overlap = inside.mean(axis=(2, 3)) * box_areas
    union = masks.mean(axis=(2, 3)) * box_areas + object_areas - overlap
    return overlap / jnp.maximum(union, 1e-6)
