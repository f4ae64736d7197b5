"""One training step: what a single device computes, and the one place where it is mapped over all of them."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mrcnn_jax.config import Experiment
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Pyramid, own_class_masks
from mrcnn_jax.models.norm import DEVICES
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training import losses, targets

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step, the same on every device."""

    step: Int[Array, ""]
    params: Any
    model_state: Any  # "frozen" or "batch_stats", by the kind of normalisation
    opt_state: optax.OptState
    failed_at: Int[Array, ""]  # first step whose loss or gradient was not finite; -1 while all is well


def create_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=optimizer.init(params), failed_at=jnp.full((), -1, jnp.int32)
    )


def batch_losses(model: MaskRCNN, batch: Batch, keys: PRNGKeyArray) -> Metrics:
    """The losses of this device's images, by the model's tasks; call it through flax.linen.apply. ``keys``: one for each image.

    Their normalisation is the released code's (RPN: sampled anchors asked for; class and box: RoIs sampled; mask: positive RoIs; keypoints:
    visible ones), but counted over all devices and not on each alone: the update is then that of one device with the whole batch, however
    the images lie.
    """
    config = model.config
    pyramid = model.pyramid(batch.images, batch.sizes, train=True)
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    if config.rpn.training == "separate":
        proposals, terms = model.frozen_proposals(batch.images, batch.sizes, train=True), {}
    else:
        proposals, terms = _rpn_losses(model, pyramid, batch, keys[:, 0])
    if config.tasks:
        terms |= _roi_losses(model, pyramid, proposals, batch, keys[:, 1])
    return {"loss": sum(terms.values()), **terms}


def _rpn_losses(model: MaskRCNN, pyramid: Pyramid, batch: Batch, keys: PRNGKeyArray) -> tuple[Proposals, Metrics]:
    """The proposals, and what the region proposal network is trained with."""
    config, anchors = model.config.rpn, model.anchors(pyramid, batch.images.shape[1:3])
    level_logits, level_deltas = model.objectness(pyramid)
    rpn = jax.vmap(lambda key, *objects: targets.rpn_targets(key, jnp.concatenate(anchors), *objects, config))(
        keys, batch.boxes, batch.valid, batch.crowd
    )
    logits = jnp.take_along_axis(jnp.concatenate(level_logits, axis=1), rpn.index, axis=1)
    deltas = jnp.take_along_axis(jnp.concatenate(level_deltas, axis=1), rpn.index[..., None], axis=1)
    anchors_asked = config.samples_per_image * batch.images.shape[0]
    divisor = anchors_asked if config.loss_normalizer == "asked" else _mean_count(rpn.exists)
    return model.proposals(level_logits, level_deltas, anchors, batch.sizes, train=True), {
        "loss_rpn_objectness": losses.objectness_loss(logits, rpn.positive, rpn.exists) / divisor,
        "loss_rpn_box": losses.box_loss(deltas, rpn.deltas, rpn.positive, config.smooth_l1_beta) / divisor,
    }


def _roi_losses(model: MaskRCNN, pyramid: Pyramid, proposals: Proposals, batch: Batch, keys: PRNGKeyArray) -> Metrics:
    """What box head, mask and keypoint branch are trained with."""
    config = model.config
    rois = jax.vmap(lambda *image: targets.roi_targets(*image, config))(keys, proposals, batch)
    rois = jax.lax.stop_gradient(rois)
    features = model.roi_features(pyramid, rois.boxes, config.box.pool, rois.exists, train=True)
    class_logits, box_deltas = model.classify(features, rois.exists, train=True)
    own_class = jnp.minimum(rois.classes, config.num_classes - 1)  # background has no deltas and no mask; its rows do not count
    box_deltas = jnp.take_along_axis(box_deltas, own_class[..., None, None], axis=2)[:, :, 0]
    rois_sampled = _mean_count(rois.exists)
    terms = {
        "loss_class": losses.class_loss(class_logits, rois.classes, rois.exists) / rois_sampled,
        "loss_box": losses.box_loss(box_deltas, rois.deltas, rois.positive, config.box.smooth_l1_beta) / rois_sampled,
    }

    slots = int(config.roi.samples_per_image * config.roi.positive_fraction)
    positive, own_class, boxes = rois.positive[:, :slots], own_class[:, :slots], rois.boxes[:, :slots]
    pooled = {config.box.pool: features[:, :slots]}  # read once for all branches that read it alike

    def branch_features(pool):
        if pool not in pooled:
            pooled[pool] = model.roi_features(pyramid, boxes, pool, positive, train=True)
        return pooled[pool]

    if "masks" in config.tasks:
        logits = model.mask_logits(branch_features(config.mask.pool), positive, train=True)
        if config.mask.loss == "softmax":
            loss = losses.softmax_mask_loss(logits, rois.masks, own_class, positive)
        else:
            own = logits[..., 0] if config.mask.class_agnostic else own_class_masks(logits, own_class)
            loss = losses.mask_loss(own, rois.masks, positive)
        terms["loss_mask"] = loss / _mean_count(positive)
    if "keypoints" in config.tasks:
        logits = model.keypoint_logits(branch_features(config.keypoint.pool))
        loss = losses.keypoint_loss(logits.reshape(*logits.shape[:3], -1), rois.keypoint_cells, rois.keypoint_valid)
        terms["loss_keypoint"] = loss / _mean_count(rois.keypoint_valid)
    return terms


def make_device_step(model: MaskRCNN, optimizer: optax.GradientTransformation, seed: int) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of one device. It knows nothing of the others but the name of the axis they lie on.

    A step whose loss or gradient is not finite changes no parameter; the state remembers the first such step and the loop halts on it.
    """

    def device_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = batch.images.shape[0]
        first = jax.lax.axis_index(DEVICES) * images
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, first + index))(jnp.arange(images))

        def loss(params):
            variables = {"params": params, **state.model_state}
            terms, updated = nn.apply(batch_losses, model, mutable=["batch_stats"])(variables, batch, keys)
            return terms["loss"], (terms, updated)

        gradient, (metrics, updated) = jax.grad(loss, has_aux=True)(state.params)
        gradient, metrics = jax.lax.pmean((gradient, metrics), DEVICES)
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        changed = (params, {**state.model_state, **updated}, opt_state)
        kept = (state.params, state.model_state, state.opt_state)
        params, model_state, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, kept)
        failed_at = jnp.where(finite | (state.failed_at >= 0), state.failed_at, state.step)
        return TrainState(state.step + 1, params, model_state, opt_state, failed_at), metrics

    return device_step


def make_train_step(model: MaskRCNN, optimizer: optax.GradientTransformation, experiment: Experiment, devices: list[jax.Device] | None = None):
    """The step over all devices: the state is one for all and is donated, a batch carries a leading axis of local devices."""
    step = make_device_step(model, optimizer, experiment.train.seed)
    return jax.pmap(step, axis_name=DEVICES, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices)


def _mean_count(chosen):
    """How many are chosen, on average over the devices; over all of them at least one."""
    count, devices = jax.lax.psum((chosen.sum().astype(jnp.float32), 1.0), DEVICES)
    return jnp.maximum(count, 1.0) / devices
