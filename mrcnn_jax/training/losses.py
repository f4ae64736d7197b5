"""The training objective: the RPN's two losses and those of the system's second stage."""

import jax
import jax.numpy as jnp

from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models.two_stage import Pyramid, TwoStage
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training.fcis_losses import fcis_losses
from mrcnn_jax.training.loss_functions import Term, box_loss, objectness_loss
from mrcnn_jax.training.mask_rcnn_losses import mask_rcnn_losses
from mrcnn_jax.training.mnc_losses import mnc_losses
from mrcnn_jax.training.targets import rpn_targets
from mrcnn_jax.typing import Array, Float, Key

Metrics = dict[str, Float[Array, ""]]
SECOND_STAGE = {"mask_rcnn": mask_rcnn_losses, "fcis": fcis_losses, "mnc": mnc_losses}
"""Losses of the second stage, by model.system."""


def batch_losses(model: TwoStage, batch: Batch, keys: Key[jax.Array, "B"]) -> Metrics:
    """Computes the losses of this device's images for the model's tasks.

    Divisors are those of the released code (RPN: nominal number of sampled anchors; class and box: sampled
    RoIs; mask: positive RoIs whose object has a mask; keypoints: visible ones), but counted over all devices
    instead of on each. The update is then that of one device with the whole batch, however images are
    distributed.

    Args:
        model: bound to its variables, by ``flax.linen.apply``.
        batch: this device's images.
        keys: random keys [B], one per image.

    Returns:
        "loss", and its terms by name.
    """
    terms = loss_terms(model, batch, keys)
    counts = _mean_counts({name: term.count for name, term in terms.items()})
    means = {name: term.total / counts[name] for name, term in terms.items()}
    return {"loss": sum(means.values()), **means}


def loss_terms(
    model: TwoStage, batch: Batch, keys: Key[jax.Array, "B"], train: bool = True
) -> dict[str, Term]:
    """Computes the losses of this device's images before they are normalised.

    Args:
        model: as for ``batch_losses``.
        batch: likewise.
        keys: likewise.
        train: batch norm uses and updates the statistics of the batch; otherwise it uses the running ones.
    """
    config = model.config
    pyramid = model.pyramid(batch.images, batch.sizes, train=train)
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    if config.rpn.proposals_from:
        proposals, terms = model.frozen_proposals(batch.images, batch.sizes, train=True), {}
    else:
        proposals, terms = _rpn_losses(model, pyramid, batch, keys[:, 0])
    if config.tasks:
        terms |= SECOND_STAGE[config.system](model, pyramid, proposals, batch, keys[:, 1], train)
    return terms


def _rpn_losses(
    model: TwoStage, pyramid: Pyramid, batch: Batch, keys: Key[jax.Array, "B"]
) -> tuple[Proposals, dict[str, Term]]:
    """Computes the losses of the region proposal network, and its proposals for the second stage.

    The dense maps of logits are for proposals alone, so they have no gradient, and those of the sampled
    anchors are computed once more, from a few cells of the pyramid; unless these are more than the maps have,
    or the gradient of a cascade flows through the proposals.
    """
    config, anchors = model.config.rpn, model.anchors(pyramid, batch.images.shape[1:3])
    cells = sum(level.shape[1] * level.shape[2] for level in pyramid)
    read = config.samples_per_image * (2 * config.convolutions + 1) ** 2
    is_sparse = read < cells and model.proposal_gradient_clip is None
    if is_sparse:
        unbound, variables = model.unbind()
        fixed = unbound.bind(jax.lax.stop_gradient(variables))
        level_logits, level_deltas = fixed.objectness(jax.lax.stop_gradient(pyramid))
    else:
        level_logits, level_deltas = model.objectness(pyramid)
    all_anchors = jnp.concatenate(anchors)
    sampled = jax.vmap(lambda key, *objects: rpn_targets(key, all_anchors, *objects, config))(
        keys, batch.boxes, batch.valid, batch.crowd
    )
    if is_sparse:
        logits, deltas = model.objectness_at(pyramid, sampled.index)
    else:
        take = jax.vmap(lambda values, index: values[index])
        logits, deltas = (
            take(jnp.concatenate(values, axis=1), sampled.index) for values in (level_logits, level_deltas)
        )
    nominal = model.config.conventions.rpn_normalizer == "nominal"
    count = config.samples_per_image * batch.images.shape[0] if nominal else sampled.valid.sum()
    box = box_loss(deltas, sampled.deltas, sampled.positive, config.smooth_l1_beta)
    return model.proposals(level_logits, level_deltas, anchors, batch.sizes, train=True), {
        "loss_rpn_objectness": Term(objectness_loss(logits, sampled.positive, sampled.valid), count),
        "loss_rpn_box": Term(box, count),
    }


def _mean_counts(counts):
    """Averages the counts over devices, in one message; at least one over all devices."""
    local = jnp.stack([jnp.asarray(count, jnp.float32) for count in counts.values()])
    total, devices = jax.lax.psum((local, 1.0), DEVICE_AXIS)
    return dict(zip(counts, jnp.maximum(total, 1.0) / devices, strict=True))
