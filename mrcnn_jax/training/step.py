"""One training step: what a single device computes, and the one place where it is mapped over all of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mrcnn_jax.config import Experiment, TrainConfig
from mrcnn_jax.models.mask_rcnn import MaskRCNN, Pyramid, own_class_masks
from mrcnn_jax.models.norm import DEVICE_AXIS
from mrcnn_jax.structures import Batch, Proposals
from mrcnn_jax.training import losses, targets
from mrcnn_jax.training.sharding import device_mesh
from mrcnn_jax.typing import Array, Float, Int, PRNGKeyArray

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step, the same on every device."""

    step: Int[Array, ""]
    params: Any
    model_state: Any  # "frozen" or "batch_stats", by the kind of normalisation
    opt_state: optax.OptState
    failures: Int[Array, ""]  # steps that nothing was learned from, as their loss or gradient was not finite, or the loss too large


def create_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, model_state=model_state, opt_state=optimizer.init(params), failures=jnp.zeros((), jnp.int32)
    )


class Term(NamedTuple):
    """A loss: what is added up over this device's images, and how many things that was, as they are counted over all devices."""

    total: Float[Array, ""]
    count: Float[Array, ""] | int


def batch_losses(model: MaskRCNN, batch: Batch, keys: PRNGKeyArray) -> Metrics:
    """The losses of this device's images, by the model's tasks; call it through flax.linen.apply. ``keys``: one for each image.

    Their normalisation is the released code's (RPN: sampled anchors asked for; class and box: RoIs sampled; mask: positive RoIs; keypoints:
    visible ones), but counted over all devices and not on each alone: the update is then that of one device with the whole batch, however
    the images lie.
    """
    config = model.config
    pyramid = model.pyramid(batch.images, batch.sizes, train=True)
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
    if config.rpn.proposals_from:
        proposals, terms = model.frozen_proposals(batch.images, batch.sizes, train=True), {}
    else:
        proposals, terms = _rpn_losses(model, pyramid, batch, keys[:, 0])
    if config.tasks:
        terms |= _roi_losses(model, pyramid, proposals, batch, keys[:, 1])
    counts = _mean_counts({name: term.count for name, term in terms.items()})
    means = {name: term.total / counts[name] for name, term in terms.items()}
    return {"loss": sum(means.values()), **means}


def _rpn_losses(model: MaskRCNN, pyramid: Pyramid, batch: Batch, keys: PRNGKeyArray) -> tuple[Proposals, dict[str, Term]]:
    """The proposals, and what the region proposal network is trained with."""
    config, anchors = model.config.rpn, model.anchors(pyramid, batch.images.shape[1:3])
    level_logits, level_deltas = model.objectness(pyramid)
    rpn = jax.vmap(lambda key, *objects: targets.rpn_targets(key, jnp.concatenate(anchors), *objects, config))(
        keys, batch.boxes, batch.valid, batch.crowd
    )
    logits = jnp.take_along_axis(jnp.concatenate(level_logits, axis=1), rpn.index, axis=1)
    deltas = jnp.take_along_axis(jnp.concatenate(level_deltas, axis=1), rpn.index[..., None], axis=1)
    count = config.samples_per_image * batch.images.shape[0] if model.config.conventions.rpn_normalizer == "nominal" else rpn.exists.sum()
    return model.proposals(level_logits, level_deltas, anchors, batch.sizes, train=True), {
        "loss_rpn_objectness": Term(losses.objectness_loss(logits, rpn.positive, rpn.exists), count),
        "loss_rpn_box": Term(losses.box_loss(deltas, rpn.deltas, rpn.positive, config.smooth_l1_beta), count),
    }


def _roi_losses(model: MaskRCNN, pyramid: Pyramid, proposals: Proposals, batch: Batch, keys: PRNGKeyArray) -> dict[str, Term]:
    """What box head, mask and keypoint branch are trained with."""
    config = model.config
    rois = jax.vmap(lambda *image: targets.roi_targets(*image, config))(keys, proposals, batch)
    rois = jax.lax.stop_gradient(rois)
    features = model.roi_features(pyramid, rois.boxes, config.pool_of("box"), rois.exists, train=True)
    class_logits, box_deltas = model.classify(features, rois.exists, train=True)
    own_class = jnp.minimum(rois.classes, config.num_classes - 1)  # background has no deltas and no mask; its rows do not count
    box_deltas = jnp.take_along_axis(box_deltas, own_class[..., None, None], axis=2)[:, :, 0]
    terms = {
        "loss_class": Term(losses.class_loss(class_logits, rois.classes, rois.exists), rois.exists.sum()),
        "loss_box": Term(losses.box_loss(box_deltas, rois.deltas, rois.positive, config.box.smooth_l1_beta), rois.exists.sum()),
    }

    slots = int(config.roi.samples_per_image * config.roi.positive_fraction)
    positive, own_class, boxes = rois.positive[:, :slots], own_class[:, :slots], rois.boxes[:, :slots]
    pooled = {config.pool_of("box"): features[:, :slots]}  # read once for all branches that read it alike

    def branch_features(pool):
        if pool not in pooled:
            pooled[pool] = model.roi_features(pyramid, boxes, pool, positive, train=True)
        return pooled[pool]

    if "masks" in config.tasks:
        logits = model.mask_logits(branch_features(config.pool_of("mask")), positive, train=True)
        if config.mask.loss == "softmax":
            loss = losses.softmax_mask_loss(logits, rois.masks, own_class, positive)
        else:
            own = logits[..., 0] if config.mask.class_agnostic else own_class_masks(logits, own_class)
            loss = losses.mask_loss(own, rois.masks, positive)
        terms["loss_mask"] = Term(loss, positive.sum())
    if "keypoints" in config.tasks:
        logits = model.keypoint_logits(branch_features(config.pool_of("keypoint")))
        loss = losses.keypoint_loss(logits.reshape(*logits.shape[:3], -1), rois.keypoint_cells, rois.keypoint_valid)
        terms["loss_keypoint"] = Term(loss, rois.keypoint_valid.sum())
    return terms


def _mean_counts(counts):
    """How many there are of each, on average over the devices; over all of them at least one. All travel together."""
    local = jnp.stack([jnp.asarray(count, jnp.float32) for count in counts.values()])
    total, devices = jax.lax.psum((local, 1.0), DEVICE_AXIS)
    return dict(zip(counts, jnp.maximum(total, 1.0) / devices, strict=True))


def make_device_step(
    model: MaskRCNN, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of one device. It knows nothing of the others but the name of the axis they lie on.

    A step that fails, by ``config.max_loss``, changes no parameter and no running statistic; the state counts such steps, and the metric "failed" tells which
    they were. Gradients are added up over the devices once, all together.
    """

    def loss(params, model_state, batch, keys):
        terms, updated = nn.apply(batch_losses, model, mutable=["batch_stats"])({"params": params, **model_state}, batch, keys)
        return terms["loss"], (terms, {**model_state, **updated})

    def gradients(params, model_state, batch, keys):
        gradient, (metrics, model_state) = jax.grad(loss, has_aux=True)(params, model_state, batch, keys)
        return model_state, (gradient, metrics)

    def accumulated_gradients(params, model_state, batch, keys):
        """Part after part; one gradient is in memory beside that of the part."""
        images = len(keys) // config.accumulate
        parts = jax.tree.map(lambda leaf: leaf.reshape(config.accumulate, images, *leaf.shape[1:]), (batch, keys))

        def add(carry, part):
            model_state, total = carry
            model_state, found = gradients(params, model_state, *part)
            return (model_state, jax.tree.map(jnp.add, total, found)), None

        found = jax.eval_shape(gradients, params, model_state, *jax.tree.map(lambda leaf: leaf[0], parts))[1]
        (model_state, total), _ = jax.lax.scan(add, (model_state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)), parts)
        return model_state, jax.tree.map(lambda leaf: leaf / config.accumulate, total)

    def device_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = batch.images.shape[0]
        first = jax.lax.axis_index(DEVICE_AXIS) * images
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        keys = jax.vmap(lambda index: jax.random.fold_in(key, first + index))(jnp.arange(images))

        compute = gradients if config.accumulate == 1 else accumulated_gradients
        model_state, (gradient, metrics) = compute(state.params, state.model_state, batch, keys)
        travelling = jax.tree.map(lambda leaf: leaf.astype(config.reduce_dtype), gradient)
        (gradient, metrics), devices = jax.lax.psum(((travelling, metrics), 1), DEVICE_AXIS)
        gradient, metrics = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / devices, (gradient, metrics))
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        good = jnp.isfinite(metrics["gradient_norm"]) & (metrics["loss"] <= config.max_loss)  # which is false for what is no number
        metrics["failed"] = 1.0 - good

        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        changed, kept = (params, model_state, opt_state), (state.params, state.model_state, state.opt_state)
        params, model_state, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), changed, kept)
        return TrainState(state.step + 1, params, model_state, opt_state, state.failures + 1 - good), metrics

    return device_step


def make_train_step(model: MaskRCNN, optimizer: optax.GradientTransformation, experiment: Experiment, devices: Sequence[jax.Device] | None = None):
    """The step over all devices, or those given: (state, batch) -> (state, metrics), both on the devices as ``training.placement`` puts them.

    The state is one for all and is donated; the leaves of a batch carry a leading axis of devices.
    """
    step, parallel = make_device_step(model, optimizer, experiment.train), experiment.train.parallel
    if parallel == "pmap":
        return jax.pmap(step, axis_name=DEVICE_AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices)
    mesh = device_mesh(devices)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DEVICE_AXIS))

    def on_each(state, batch):
        return step(state, jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), batch))

    # without its check of which values vary over devices, as that would add up gradients by itself
    mapped = jax.shard_map(on_each, mesh=mesh, in_specs=(whole.spec, split.spec), out_specs=whole.spec, check_vma=False)
    return jax.jit(mapped, in_shardings=(whole, split), out_shardings=whole, donate_argnums=0)
