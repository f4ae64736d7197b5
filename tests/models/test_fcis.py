"""FCIS: scores, masks and boxes of RoIs by their definition, hard examples, detections, and sizes."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import tiny
from variants import VARIANTS

from mrcnn_jax.config import RoIConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.fcis import FCIS, FCISInstances, ScoreMaps
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.presets import fcis as presets
from mrcnn_jax.structures import Proposals
from mrcnn_jax.training.fcis_losses import fcis_losses, roi_losses
from mrcnn_jax.training.targets import RoITargets

CONFIG = replace(VARIANTS["FCIS"], num_classes=tiny.CLASSES)


def test_instances_follow_their_definition():
    """Maximum of each pair, mean over the bins; the pair's softmax is the mask."""
    rng = np.random.default_rng(0)
    classes, deltas = (rng.standard_normal((1, 6, 8, 2, 2, n), dtype=np.float32) for n in (8, 4))
    boxes = np.float32([[[8, 4, 90, 70], [0, 0, 127, 95]]])
    found = FCIS(CONFIG).instances(ScoreMaps(jnp.asarray(classes), jnp.asarray(deltas)), jnp.asarray(boxes))
    pooled = oracles.ps_roi_pool(classes[0], boxes[0], (6, 6), 1 / 16).reshape(2, 6, 6, 4, 2)
    np.testing.assert_allclose(found.logits[0], pooled.max(axis=-1).mean(axis=(1, 2)), atol=1e-5)
    inside = np.exp(pooled[..., 1]) / np.exp(pooled).sum(axis=-1)
    np.testing.assert_allclose(nn.sigmoid(found.mask_logits[0]), inside, atol=1e-5)
    separate = replace(CONFIG, fcis=replace(CONFIG.fcis, joint_maps=False))
    apart = FCIS(separate).instances(ScoreMaps(jnp.asarray(classes), jnp.asarray(deltas)), jnp.asarray(boxes))
    np.testing.assert_allclose(apart.logits[0], pooled[..., 0].mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(apart.mask_logits[0], pooled[..., 1], atol=1e-5)
    pooled = oracles.ps_roi_pool(deltas[0], boxes[0], (6, 6), 1 / 16)
    np.testing.assert_allclose(found.deltas[0], pooled.mean(axis=(1, 2)), atol=1e-5)


def test_losses_of_each_roi():
    """By hand: an object of class 1 with a mask, one whose mask is unknown, background, and an empty slot."""
    rng = np.random.default_rng(1)
    logits, masks, deltas = (
        rng.standard_normal((1, 4, *shape), dtype=np.float32) for shape in ((4,), (6, 6, 4), (4,))
    )
    positive, valid = np.array([[1, 1, 0, 0]], bool), np.array([[1, 1, 1, 0]], bool)
    rois = RoITargets(
        index=np.zeros((1, 4), np.int32), matched=np.zeros((1, 4), np.int32),
        boxes=np.zeros((1, 4, 4), np.float32), classes=np.int32([[1, 0, 3, 3]]), positive=positive,
        valid=valid, deltas=np.zeros((1, 4, 4), np.float32),
        masks=(rng.uniform(size=(1, 2, 6, 6)) > 0.5).astype(np.float32),
        mask_valid=np.array([[1, 0]], bool), keypoint_cells=None, keypoint_valid=None,
    )  # fmt: skip
    losses = roi_losses(FCISInstances(*map(jnp.asarray, (logits, masks, deltas))), rois, CONFIG)
    probability = np.exp(logits[0]) / np.exp(logits[0]).sum(axis=1, keepdims=True)
    expected = [*(-np.log(probability[roi, rois.classes[0, roi]]) for roi in range(3)), 0]
    np.testing.assert_allclose(losses["loss_class"][0], expected, rtol=1e-5)
    distance = np.abs(deltas[0, :2])
    smooth = np.where(distance < 1, 0.5 * distance**2, distance - 0.5).sum(axis=1)
    np.testing.assert_allclose(losses["loss_box"][0], [*smooth, 0, 0], rtol=1e-5)
    inside = 1 / (1 + np.exp(-masks[0, 0, ..., 1]))
    entropy = -np.where(rois.masks[0, 0] == 1, np.log(inside), np.log(1 - inside)).mean()
    np.testing.assert_allclose(losses["loss_mask"][0], [10 * entropy, 0, 0, 0], rtol=1e-5)


SAMPLES = 4
BOXES = np.sort(np.random.default_rng(2).uniform(0, 60, (2, 10, 2, 2)).astype(np.float32), axis=2)
BOXES = BOXES.reshape(2, 10, 4)


def train_on_boxes(sampling):
    """Returns a function of boxes: losses and the boxes pooled for them, by a model that sees boxes alone."""
    roi = RoIConfig(levels=(5, 5), samples_per_image=SAMPLES)
    config = replace(CONFIG, roi=roi, fcis=replace(CONFIG.fcis, sampling=sampling))

    def run(boxes):
        pooled = []

        class StandIn(FCIS):
            def score_maps(self, pyramid):
                return ScoreMaps(pyramid[0], pyramid[0])

            def instances(self, maps, boxes):
                pooled.append(boxes)
                return FCISInstances(boxes / 16, jnp.zeros((*boxes.shape[:2], 6, 6, 4)), boxes * 0)

        batch = jax.tree.map(jnp.asarray, tiny.batch([3, 0]))
        proposals = Proposals(boxes, jnp.zeros((2, 10)), jnp.arange(10)[None] < jnp.array([[10], [3]]))
        keys = jax.random.split(jax.random.key(0), 2)
        return fcis_losses(StandIn(config), [jnp.zeros((2, 4, 4, 1))], proposals, batch, keys), pooled

    return run


def test_hard_examples_are_the_rois_of_greatest_loss():
    """Among all proposals and objects; an image with three proposals and no object has three."""
    terms, (everything, chosen) = jax.jit(train_on_boxes("hard"))(BOXES)
    assert {name: int(term.count) for name, term in terms.items()} == dict.fromkeys(terms, SAMPLES + 3)
    assert everything.shape == (2, 10 + tiny.SLOTS, 4) and chosen.shape == (2, SAMPLES, 4)
    likelihood = np.exp(BOXES[1, :3] / 16)[:, 3] / np.exp(BOXES[1, :3] / 16).sum(axis=1)
    np.testing.assert_allclose(chosen[1, :3], BOXES[1, :3][np.argsort(likelihood)])
    assert (chosen[1, 3:] == 0).all()


def test_random_samples_are_pooled_once():
    _, pooled = jax.eval_shape(train_on_boxes("random"), BOXES)
    assert [boxes.shape for boxes in pooled] == [(2, SAMPLES, 4)]


def test_detections_are_well_formed():
    """Also of an image of one colour."""
    batch = tiny.batch([2, 0])
    batch.images[1] = 128
    config = replace(CONFIG, box=replace(CONFIG.box, score_threshold=0.0))
    found = jax.jit(make_model(config).apply)(tiny.variables(CONFIG), batch.images, batch.sizes)
    found = jax.tree.map(np.asarray, found)
    number = CONFIG.box.max_detections
    assert found.boxes.shape == (2, number, 4) and found.masks.shape == (2, number, 6, 6)
    assert found.valid.any() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert (found.masks >= 0).all() and (found.masks <= 1.00001).all()
    height, width = batch.sizes[0]
    boxes = found.boxes[found.valid]
    assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height + 1).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all() and (found.scores[~found.valid] == 0).all()


def test_parameter_counts_are_those_of_the_released_network():
    """Its box maps are twice as many, as it has two classes of boxes of which one is used."""
    model = make_model(presets.fcis_r101().model)
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["params"]
    count = {
        f"{part}/{layer}": sum(leaf.size for leaf in jax.tree.leaves(params[part][layer]))
        for part in ("maps", "rpn")
        for layer in params[part]
    }
    assert count == {
        "maps/neck": 2_098_176, "maps/classes": 8_136_450, "maps/deltas": 401_800 // 2,
        "rpn/conv1": 9 * 1024 * 1024 + 1024, "rpn/objectness": 12 * 1025, "rpn/deltas": 48 * 1025,
    }  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": ("boxes",)}, "model.tasks must be boxes masks, or empty, with model.system fcis"),
        ({"backbone": replace(CONFIG.backbone, features="c5")}, "backbone.features must be dc5"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **change)
