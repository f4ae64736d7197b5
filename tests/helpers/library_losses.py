"""Losses and gradients of a model under the conditions in which other libraries' were recorded."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mrcnn_jax import ops
from mrcnn_jax.config import ModelConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.models import norm
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.losses import batch_losses
from mrcnn_jax.weights.param_map import ParamMap, to_source

NAMES = {
    "loss_class": ("loss_classifier", "loss_cls"),
    "loss_box": ("loss_box_reg", "loss_box_reg"),
    "loss_mask": ("loss_mask", "loss_mask"),
    "loss_keypoint": ("loss_keypoint", "loss_keypoint"),
    "loss_rpn_objectness": ("loss_objectness", "loss_rpn_cls"),
    "loss_rpn_box": ("loss_rpn_box_reg", "loss_rpn_loc"),
}
"""Names of the losses in torchvision and Detectron2."""


def use_all(model: ModelConfig, anchors: int, positives: int) -> ModelConfig:
    """Returns the model with so many samples that all anchors and proposals are used, and nothing is drawn.

    ``positives`` is the number of slots for positive RoIs, at least as many as there are.
    """
    candidates = model.rpn.post_nms_train + 5
    fraction = (positives + 0.5) / candidates
    return replace(
        model,
        rpn=replace(model.rpn, samples_per_image=2 * anchors, positive_fraction=0.5),
        roi=replace(model.roi, samples_per_image=candidates, positive_fraction=fraction),
    )


def losses_and_gradients(monkeypatch, model: ModelConfig, variables: dict, batch: Batch) -> tuple[dict, dict]:
    """Returns losses by name, and gradients of the parameters, for a batch of one image.

    Masks are those of the whole image, which other libraries crop targets from; batch norm uses its running
    statistics."""
    crop, batch_norm = ops.crop_masks, norm.BatchNorm
    height, width = batch.images.shape[:2]
    whole = jnp.float32([0, 0, width, height])

    def crop_from_image(masks, mask_boxes, boxes, *settings):
        return crop(masks, jnp.broadcast_to(whole, mask_boxes.shape), boxes, *settings, border=0.5)

    monkeypatch.setattr(ops, "crop_masks", crop_from_image)
    monkeypatch.setattr(norm, "BatchNorm", lambda train, **settings: batch_norm(train=False, **settings))

    def gradient(variables, batch):
        state = {name: value for name, value in variables.items() if name != "params"}
        keys = jax.random.split(jax.random.key(0), 1)

        def loss(params):
            terms = nn.apply(batch_losses, MaskRCNN(model))({"params": params, **state}, batch, keys)
            return terms["loss"], terms

        return jax.grad(loss, has_aux=True)(variables["params"])

    batch = jax.tree.map(lambda leaf: leaf[None, None], batch)
    device = jax.devices()[:1]
    mapped = jax.pmap(gradient, axis_name=DEVICE_AXIS, in_axes=(None, 0), devices=device)
    gradients, terms = jax.tree.map(lambda leaf: np.asarray(leaf[0]), mapped(variables, batch))
    return terms, gradients


def compare_losses(terms: dict, expected: dict, library: str) -> None:
    """Compares losses with recorded ones. ``library`` is "torchvision" or "detectron2"."""
    for name, names in NAMES.items():
        theirs = names[library == "detectron2"]
        assert (name in terms) == (theirs in expected), name
        if name in terms:
            # small losses are rounded less than the sums before them
            np.testing.assert_allclose(terms[name], expected[theirs], rtol=1e-5, atol=3e-7, err_msg=name)


def compare_gradients(gradients: dict, expected: dict, param_map: ParamMap) -> None:
    """Compares norm, sum and first elements of each gradient; of those not recorded all must be zero."""
    found = to_source({"params": gradients}, param_map)
    lengths = dict(zip(expected["grad_names"].tolist(), expected["grad_l2"].tolist(), strict=True))
    floor = 1e-6 * np.linalg.norm(expected["grad_l2"])
    for index, (name, length) in enumerate(lengths.items()):
        scale, gradient = max(length, floor), found[name].astype(np.float64)
        assert abs(np.linalg.norm(gradient) - length) < 5e-3 * scale, name
        assert abs(gradient.sum() - expected["grad_sum"][index]) < 5e-3 * scale * np.sqrt(gradient.size), name
        first = expected["grad_first8"][index][: gradient.size]
        np.testing.assert_allclose(
            gradient.ravel()[: len(first)], first, atol=5e-3 * scale, rtol=0, err_msg=name
        )
    for name in found.keys() - lengths.keys():
        assert not found[name].any(), f"{name} is frozen in the library"
