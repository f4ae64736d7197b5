"""The losses against fvcore's, torch's and torchvision's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import ops
from mrcnn_jax.training import loss_functions as losses

CLOSE = {"rtol": 1e-6, "atol": 1e-7}


@pytest.fixture(scope="module")
def arrays(golden):
    return {name: jnp.asarray(array) for name, array in golden("losses").items()}


@pytest.mark.parametrize("name, beta", [("0", 0.0), ("1_9", 1 / 9), ("0.5", 0.5), ("1", 1.0)])
def test_smooth_l1_equals_fvcore_and_torch(arrays, name, beta):
    values = losses.smooth_l1(arrays["pred"], arrays["target"], beta)
    summed = jax.grad(lambda prediction: losses.smooth_l1(prediction, arrays["target"], beta).sum())
    gradient = summed(arrays["pred"])
    np.testing.assert_allclose(values, arrays[f"fv_beta{name}"], **CLOSE)
    np.testing.assert_allclose(gradient, arrays[f"fv_grad_beta{name}"], **CLOSE)
    if beta:
        np.testing.assert_allclose(values, arrays[f"torch_beta{name}"], **CLOSE)


def test_smooth_l1_by_hand():
    prediction, target = jnp.asarray([0.0, 0.25, -0.5, 3.0]), jnp.zeros(4)
    np.testing.assert_allclose(losses.smooth_l1(prediction, target, 0.5), [0, 0.0625, 0.25, 2.75])
    np.testing.assert_allclose(losses.smooth_l1(prediction, target, 0.0), [0, 0.25, 0.5, 3.0])


def test_class_and_box_loss_equal_torchvision(arrays):
    rows, labels = len(arrays["frcnn_labels"]), arrays["frcnn_labels"]  # background is class 0 there

    def class_loss(logits):
        return losses.class_loss(logits, labels, jnp.ones(rows, bool)) / rows

    def box_loss(deltas):
        own = jnp.take_along_axis(deltas.reshape(rows, 6, 4), labels[:, None, None], axis=1)[:, 0]
        return losses.box_loss(own, arrays["frcnn_targets"], labels > 0, 1 / 9) / rows

    for loss, inputs, name in ((class_loss, "logits", "cls"), (box_loss, "reg", "reg")):
        value, gradient = jax.value_and_grad(loss)(arrays[f"frcnn_{inputs}"])
        np.testing.assert_allclose(value, arrays[f"frcnn_loss_{name}"], rtol=1e-6)
        np.testing.assert_allclose(gradient, arrays[f"frcnn_grad_{inputs}"], rtol=1e-5, atol=1e-8)


def test_mask_loss_equals_torchvision(arrays):
    match, proposals = arrays["mask_match"], arrays["mask_props"]
    logits = arrays["mask_logits"].astype(jnp.float32)[jnp.arange(5), arrays["mask_gt_labels"][match]]
    frames = jnp.asarray([[0.0, 0.0, 64.0, 64.0]] * 5)
    # torchvision's targets: adaptive sampling, unaligned, not made binary
    masks = arrays["mask_gt"][match].astype(jnp.float32)
    targets = ops.crop_masks(masks, frames, proposals, 28, sampling_ratio=0, half_pixel=False, border=0.5)
    value = losses.mask_loss(logits, targets, jnp.ones(5, bool)) / 5
    np.testing.assert_allclose(value, arrays["mask_loss_tv"], rtol=1e-6)


@jax.jit
def summed_keypoint_loss(logits, keypoints, boxes):
    cells, valid = ops.keypoint_targets(keypoints, boxes, 56)
    return losses.keypoint_loss(logits.reshape(*cells.shape, -1), cells, valid), valid.sum()


def test_keypoint_loss_equals_torchvision_and_detectron2(golden):
    expected = golden("keypoints")
    keypoints, rois = expected["keypoints"][:4], expected["rois"][:4]
    value, count = summed_keypoint_loss(expected["loss_logits"], keypoints, rois)
    np.testing.assert_allclose(value / count, expected["tv_loss"], rtol=1e-6)
    value, count = summed_keypoint_loss(expected["kp_logits"], expected["kp_gt"], expected["kp_props"])
    np.testing.assert_allclose(value / count, expected["kp_loss_norm_visible"], rtol=1e-6)
    np.testing.assert_allclose(value / 100, expected["kp_loss_norm_100"], rtol=1e-6)


def test_softmax_mask_loss_by_hand():
    rng = np.random.default_rng(3)
    logits, targets = rng.normal(size=(3, 4, 4, 6)), rng.integers(0, 2, (3, 4, 4))
    classes = np.array([0, 4, 2])
    positive = np.array([True, True, False])
    expected = 0.0
    for roi in np.flatnonzero(positive):
        for row, column in np.ndindex(4, 4):
            probabilities = np.exp(logits[roi, row, column]) / np.exp(logits[roi, row, column]).sum()
            label = classes[roi] if targets[roi, row, column] else 5  # the background
            expected -= np.log(probabilities[label]) / 16
    operands = jnp.float32(logits), jnp.float32(targets), jnp.asarray(classes), jnp.asarray(positive)
    value = losses.softmax_mask_loss(*operands)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_objectness_loss_by_hand():
    logits, positive = jnp.asarray([2.0, -1.0, 0.5, 9.0]), jnp.asarray([True, False, True, False])
    valid = jnp.arange(4) < 3
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-0.5))
    np.testing.assert_allclose(losses.objectness_loss(logits, positive, valid), expected, rtol=1e-6)


def test_entries_not_sampled_give_neither_loss_nor_gradient():
    rng = np.random.default_rng(0)
    kept = jnp.asarray([True, False, True])
    cases = [
        (losses.objectness_loss, rng.normal(size=3), lambda values: (values, kept, kept)),
        (losses.class_loss, rng.normal(size=(3, 5)), lambda values: (values, jnp.asarray([1, 4, 0]), kept)),
        (losses.mask_loss, rng.normal(size=(3, 4, 4)), lambda values: (values, jnp.ones((3, 4, 4)), kept)),
        (losses.box_loss, rng.normal(size=(3, 4)), lambda values: (values, jnp.zeros((3, 4)), kept, 1.0)),
        (losses.softmax_mask_loss, rng.normal(size=(3, 4, 4, 5)),
         lambda values: (values, jnp.ones((3, 4, 4)), jnp.asarray([1, 3, 0]), kept)),
        (losses.keypoint_loss, rng.normal(size=(3, 2, 16)),
         lambda values: (values, jnp.zeros((3, 2), int), jnp.stack([kept] * 2, axis=1))),
    ]
    for loss, values, arguments in cases:
        values = jnp.asarray(values, jnp.float32)
        both = jax.jit(jax.value_and_grad(lambda v, loss=loss, arguments=arguments: loss(*arguments(v))))
        value, gradient = both(values)
        gradient = np.asarray(gradient)
        assert value > 0 and not gradient[1].any() and gradient[0].any() and gradient[2].any()
        changed, _ = both(values.at[1].set(7.0))
        np.testing.assert_allclose(changed, value, rtol=1e-6)


def test_half_precision_is_summed_in_single():
    rng = np.random.default_rng(1)
    kept, classes = jnp.ones(512, bool), jnp.asarray(rng.integers(0, 5, 512))
    cases = [
        (rng.normal(size=512), lambda x: losses.objectness_loss(x, classes > 2, kept)),
        (rng.normal(size=(512, 6)), lambda x: losses.class_loss(x, classes, kept)),
        (rng.normal(size=(512, 4)), lambda x: losses.box_loss(x, jnp.zeros((512, 4)), kept, 1.0)),
        (rng.normal(size=(512, 4, 4)), lambda x: losses.mask_loss(x, jnp.ones((512, 4, 4)), kept)),
        (rng.normal(size=(512, 4, 4, 6)),
         lambda x: losses.softmax_mask_loss(x, jnp.ones((512, 4, 4)), classes, kept)),
        (rng.normal(size=(512, 3, 16)),
         lambda x: losses.keypoint_loss(x, jnp.zeros((512, 3), int), jnp.ones((512, 3), bool))),
    ]
    for given, loss in cases:
        half = jnp.asarray(given, jnp.bfloat16)
        value, gradient = jax.jit(jax.value_and_grad(loss))(half)
        assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(value, jax.jit(loss)(half.astype(jnp.float32)), rtol=1e-6)


def test_loss_without_entries_is_zero():
    def zeros(*shape):
        return jnp.zeros((0, *shape)), jnp.zeros((0, *shape[:-1]), int), jnp.zeros((0, *shape[:-1]), bool)

    cases = [
        (zeros(4)[0], lambda x: losses.box_loss(x, x, zeros(4)[2], 1.0)),
        (zeros(6)[0], lambda x: losses.class_loss(x, *zeros(6)[1:])),
        (zeros(4, 4)[0], lambda x: losses.mask_loss(x, x, zeros(1)[2])),
        (zeros(4, 4, 6)[0], lambda x: losses.softmax_mask_loss(x, x[..., 0], *zeros(1)[1:])),
        (zeros(3, 16)[0], lambda x: losses.keypoint_loss(x, *zeros(3, 16)[1:])),
    ]
    for nothing, loss in cases:
        value, gradient = jax.jit(jax.value_and_grad(loss))(nothing)
        assert value == 0 and gradient.shape == nothing.shape


def test_confident_mistakes_stay_finite():
    for logits in (jnp.asarray([1e4, -1e4]), jnp.asarray([-1e4, 1e4])):
        for loss in (
            lambda x: losses.objectness_loss(x, jnp.asarray([True, False]), jnp.ones(2, bool)),
            lambda x: losses.class_loss(x[None], jnp.asarray([0]), jnp.ones(1, bool)),
        ):
            value, gradient = jax.value_and_grad(loss)(logits)
            assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
