"""The losses against fvcore's, torch's and torchvision's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mrcnn_jax import ops
from mrcnn_jax.training import losses

CLOSE = {"rtol": 1e-6, "atol": 1e-7}


@pytest.fixture(scope="module")
def arrays(golden):
    return {name: jnp.asarray(array) for name, array in golden("losses").items()}


@pytest.mark.parametrize("name, beta", [("0", 0.0), ("1_9", 1 / 9), ("0.5", 0.5), ("1", 1.0)])
def test_smooth_l1_equals_fvcore_and_torch(arrays, name, beta):
    values = losses.smooth_l1(arrays["pred"], arrays["target"], beta)
    gradient = jax.grad(lambda prediction: losses.smooth_l1(prediction, arrays["target"], beta).sum())(arrays["pred"])
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

    for loss, given, name in ((class_loss, arrays["frcnn_logits"], "cls"), (box_loss, arrays["frcnn_reg"], "reg")):
        value, gradient = jax.value_and_grad(loss)(given)
        np.testing.assert_allclose(value, arrays[f"frcnn_loss_{name}"], rtol=1e-6)
        np.testing.assert_allclose(gradient, arrays[f"frcnn_grad_{'logits' if name == 'cls' else 'reg'}"], rtol=1e-5, atol=1e-8)


def test_mask_loss_equals_torchvision(arrays):
    match, proposals = arrays["mask_match"], arrays["mask_props"]
    logits = arrays["mask_logits"].astype(jnp.float32)[jnp.arange(5), arrays["mask_gt_labels"][match]]
    frames = jnp.asarray([[0.0, 0.0, 64.0, 64.0]] * 5)
    # torchvision's targets: adaptive sampling, unaligned, not made binary
    targets = ops.crop_masks(arrays["mask_gt"][match].astype(jnp.float32), frames, proposals, 28, sampling_ratio=0, aligned=False, border=0.5)
    value = losses.mask_loss(logits, targets, jnp.ones(5, bool)) / 5
    np.testing.assert_allclose(value, arrays["mask_loss_tv"], rtol=1e-6)


def test_objectness_loss_by_hand():
    logits, positive, exists = jnp.asarray([2.0, -1.0, 0.5, 9.0]), jnp.asarray([True, False, True, False]), jnp.asarray([True, True, True, False])
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-0.5))
    np.testing.assert_allclose(losses.objectness_loss(logits, positive, exists), expected, rtol=1e-6)


def test_what_is_not_sampled_gives_neither_loss_nor_gradient():
    rng = np.random.default_rng(0)
    kept = jnp.asarray([True, False, True])
    cases = [
        (losses.objectness_loss, rng.normal(size=3), lambda values: (values, kept, kept)),
        (losses.class_loss, rng.normal(size=(3, 5)), lambda values: (values, jnp.asarray([1, 4, 0]), kept)),
        (losses.mask_loss, rng.normal(size=(3, 4, 4)), lambda values: (values, jnp.ones((3, 4, 4)), kept)),
        (losses.box_loss, rng.normal(size=(3, 4)), lambda values: (values, jnp.zeros((3, 4)), kept, 1.0)),
    ]
    for loss, values, arguments in cases:
        values = jnp.asarray(values, jnp.float32)
        value, gradient = jax.value_and_grad(lambda v, loss=loss, arguments=arguments: loss(*arguments(v)))(values)
        assert value > 0 and not gradient[1].any() and gradient[0].any() and gradient[2].any()
        changed = loss(*arguments(values.at[1].set(7.0)))
        np.testing.assert_allclose(changed, value, rtol=1e-6)


def test_confident_mistakes_stay_finite():
    for logits in (jnp.asarray([1e4, -1e4]), jnp.asarray([-1e4, 1e4])):
        value, gradient = jax.value_and_grad(lambda x: losses.objectness_loss(x, jnp.asarray([True, False]), jnp.ones(2, bool)))(logits)
        assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
        value, gradient = jax.value_and_grad(lambda x: losses.class_loss(x[None], jnp.asarray([0]), jnp.ones(1, bool)))(logits)
        assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
