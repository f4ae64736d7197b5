"""The losses of FCIS: of class, box and mask, summed over the same RoIs, which are chosen by them."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.models.fcis import FCIS, FCISInstances
from mrcnn_jax.models.heads import select_class_masks
from mrcnn_jax.models.two_stage import Pyramid
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training.loss_functions import Term, box_loss, class_loss, mask_loss
from mrcnn_jax.training.targets import RoITargets, roi_targets
from mrcnn_jax.typing import Array, Float, Key


def fcis_losses(
    model: FCIS, pyramid: Pyramid, proposals: Proposals, batch: Batch, keys: Key[jax.Array, "B"],
    train: bool = True,
) -> dict[str, Term]:  # fmt: skip
    """Computes the three losses, all divided by the number of RoIs that are trained on; the heads have no
    batch norm, for which ``train`` would matter.

    With hard examples, all proposals and the objects' own boxes are pooled first, without a gradient; only
    the RoIs of greatest loss are pooled again, with one.
    """
    config, maps = model.config, model.score_maps(pyramid)
    if config.fcis.sampling == "random":
        rois = jax.vmap(lambda *image: roi_targets(*image, config))(keys, proposals, batch.examples)
    else:
        number = proposals.valid.shape[1] + batch.valid.shape[1]
        everything = replace(config.roi, samples_per_image=number, positive_fraction=1.0)
        everything = replace(config, roi=everything)
        rois = jax.vmap(lambda *image: roi_targets(*image, everything))(keys, proposals, batch.examples)
        found = model.instances(jax.lax.stop_gradient(maps), rois.boxes)
        losses = sum(roi_losses(found, rois, config).values())
        rois = jax.vmap(partial(_hardest, number=config.roi.samples_per_image))(losses, rois)
    rois = jax.lax.stop_gradient(rois)
    losses, count = roi_losses(model.instances(maps, rois.boxes), rois, config), rois.valid.sum()
    return {name: Term(loss.sum(), count) for name, loss in losses.items()}


def roi_losses(found: FCISInstances, rois: RoITargets, config: ModelConfig) -> dict[str, Float[Array, "B R"]]:
    """Computes the losses of each RoI; the mask loss is a mean over its pixels, times its weight."""

    def each(loss, *arrays):
        return jax.vmap(jax.vmap(loss))(*arrays)

    slots = rois.masks.shape[1]
    labels = jnp.minimum(rois.classes[:, :slots], config.num_classes - 1)  # those of background do not count
    own = select_class_masks(found.mask_logits[:, :slots], labels)
    masks = config.fcis.mask_loss_weight * each(mask_loss, own, rois.masks, rois.mask_valid)
    smooth_l1 = partial(box_loss, beta=config.box.smooth_l1_beta)
    return {
        "loss_class": each(class_loss, found.logits, rois.classes, rois.valid),
        "loss_box": each(smooth_l1, found.deltas, rois.deltas, rois.positive),
        # RoIs without a slot are not positive
        "loss_mask": jnp.pad(masks, ((0, 0), (0, rois.valid.shape[1] - slots))),
    }


def _hardest(losses, rois, number):
    """The RoIs of one image of greatest loss."""
    index, valid = ops.hard_examples(losses, rois.valid, number)
    rois = jax.tree.map(lambda leaf: leaf[index], rois)
    return rois._replace(valid=valid, positive=rois.positive & valid, mask_valid=rois.mask_valid & valid)
