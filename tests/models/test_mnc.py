"""Multi-task network cascades: parts by hand, and gradients through boxes."""

import json
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from paths import GOLDEN
from variants import VARIANTS

from mrcnn_jax import presets
from mrcnn_jax.config import MNCConfig, ModelConfig, RoIConfig
from mrcnn_jax.distributed import DEVICE_AXIS
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mnc import MNC, MNCInstances
from mrcnn_jax.models.systems import init_variables
from mrcnn_jax.structures import Proposals
from mrcnn_jax.training.losses import batch_losses
from mrcnn_jax.training.mnc_losses import mask_overlaps
from mrcnn_jax.training.targets import RoITargets

CONFIG = VARIANTS["MNC"]


def test_parameters_are_those_of_the_described_network():
    model = MNC(presets.get("mnc_r101_c4").model)
    params = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))["params"]
    counts = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    res5 = json.loads((GOLDEN / "parameter_counts.json").read_text())["d2_mask_rcnn_R_50_C4"]["res5"]
    assert counts.pop("backbone") > 20_000_000
    assert counts == {
        "rpn": 9 * 1024**2 + 1024 + (1024 + 1) * 12 * 5,
        "mask": (14 * 14 * 1024 + 1) * 256 + (256 + 1) * 28 * 28,
        "res5": res5,
        "mask_res5": res5,
        "instance": (2 * 2048 + 1) * (81 + 81 + 4 * 80),
    }


def regress(boxes, found, sizes):
    return MNC(CONFIG).apply({}, boxes, found, sizes, method="regress")


def test_boxes_are_regressed_by_their_best_foreground_class():
    logits = np.zeros((1, 3, 8), np.float32)
    logits[0, 0, [2, 7]] = 1, 5  # background, the last, does not count
    logits[0, 1, 4] = 1
    deltas = np.zeros((1, 3, 7, 4), np.float32)
    deltas[0, 0, 2] = 5, 0, 0, 5 * np.log(2)  # half a width to the right, twice as high
    deltas[0, 1, 4], deltas[0, 1, 2] = (10, 0, 0, 0), (3, 3, 3, 3)
    boxes = np.float32([[[10, 10, 30, 20], [40, 10, 60, 20], [0, 50, 8, 60]]])
    found = MNCInstances(np.zeros((1, 3, 12, 12), np.float32), logits, logits, deltas)
    sizes = np.int32([[60, 64]])
    expected = [[[20, 5, 40, 25], [60, 10, 64, 20], [0, 50, 8, 60]]]
    np.testing.assert_allclose(regress(boxes, found, sizes), expected, atol=1e-5)

    def x1(boxes, deltas):
        return regress(boxes, found._replace(deltas=deltas), sizes)[0, :, 0].sum()

    of_boxes, of_deltas = jax.grad(x1, argnums=(0, 1))(boxes, deltas)
    # x1 of the first: x1 + width / 2; clipped to 1/512 before the weight 10
    np.testing.assert_allclose(of_boxes[0, 0], [0.5, 0, 0.5, 0], atol=1e-6)
    limit = 1 / 512
    np.testing.assert_allclose(of_deltas[0, 0, 2], [limit / 10, 0, -limit / 5, 0], atol=1e-9)
    assert not of_deltas[0, 0, :2].any() and not of_deltas[0, 0, 3:].any()


def test_overlap_counts_the_object_outside_its_box():
    whole, right = np.ones((4, 4), bool), np.zeros((4, 4), np.float32)
    right[:, 2:] = 1
    fields = dict.fromkeys(RoITargets._fields) | {
        "boxes": np.float32([[[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 0]]]),
        "masks": np.stack([right, right, 0 * right])[None], "matched": np.int32([[1, 1, 0]]),
    }  # fmt: skip
    batch = tiny.batch([1])
    boxes, masks = batch.boxes.copy(), np.ones_like(batch.masks)
    boxes[0, 1] = 5, 0, 15, 10  # half of it is inside the RoI
    predicted = np.stack([whole, right.astype(bool), ~whole])[None]
    overlap = mask_overlaps(predicted, RoITargets(**fields), batch.replace(boxes=boxes, masks=masks))
    np.testing.assert_allclose(overlap, [[50 / 150, 50 / 100, 0]], rtol=1e-6)


@pytest.fixture(scope="module")
def gradient():
    """Losses of the second stage of three training stages and one res5, and their gradient."""
    config = replace(CONFIG, mnc=replace(CONFIG.mnc, training_stages=3, share_res5=True))
    variables = tiny.variables(config)

    def loss(params, batch):
        keys = jax.random.split(jax.random.key(3), len(batch.images))
        terms = nn.apply(batch_losses, MNC(config))(variables | {"params": params}, batch, keys)
        return sum(value for name, value in terms.items() if name != "loss" and "rpn" not in name), terms

    compiled = jax.pmap(
        jax.grad(loss, has_aux=True), axis_name=DEVICE_AXIS, in_axes=(None, 0), devices=jax.devices()[:1]
    )

    def compute(batch):
        gradients, terms = compiled(variables["params"], jax.tree.map(lambda leaf: leaf[None], batch))
        return tiny.names_and_leaves(gradients), {name: float(value[0]) for name, value in terms.items()}

    return compute


def test_losses_reach_the_boxes_of_the_proposals_and_the_masks(gradient):
    gradients, terms = gradient(tiny.batch([2, 0]))
    second = {"loss_mask", "loss_class", "loss_box_class", "loss_box"}
    assert terms.keys() == {"loss", "loss_rpn_objectness", "loss_rpn_box"} | second
    assert "['mask_res5']['res5_0']['conv1']['kernel']" not in gradients
    for name, leaf in gradients.items():  # which boxes are chosen is not differentiable
        assert np.isfinite(leaf).all() and leaf.any() == ("['objectness']" not in name), name


def test_images_without_objects_teach_no_masks(gradient):
    gradients, terms = gradient(tiny.batch([0, 0]))
    assert terms["loss_mask"] == terms["loss_box"] == 0 < terms["loss_class"]
    assert all(np.isfinite(leaf).all() for leaf in gradients.values())


def test_detections_come_from_valid_proposals_alone():
    model, variables = MNC(CONFIG), tiny.variables(CONFIG)
    features = np.random.default_rng(0).standard_normal((2, 4, 4, 32), np.float32)
    corner = np.random.default_rng(1).uniform(0, 30, (2, 8, 2))
    boxes = np.float32(np.concatenate([corner, corner + 20], axis=2))
    valid = np.array([[True] * 5 + [False] * 3, [False] * 8])
    proposals = Proposals(boxes=boxes, scores=np.zeros((2, 8), np.float32), valid=valid)
    detect = jax.jit(lambda *args: model.apply(variables, *args, method="detect"))
    found = detect((features,), proposals, np.int32([[60, 64]] * 2))
    assert found.masks.shape == (2, 6, 12, 12) and found.valid[0].any() and not found.valid[1].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert (np.diff(found.scores[0]) <= 0).all() and (found.scores > 0)[found.valid].all()
    shown = np.asarray(found.boxes)[np.asarray(found.valid)]
    assert (shown >= 0).all() and (shown[:, 2] <= 64).all() and (shown[:, 3] <= 60).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tasks": ("boxes",)}, "model.tasks must be boxes masks, or empty, with model.system mnc, not box"),
        ({"backbone": replace(CONFIG.backbone, features="dc5"), "roi": RoIConfig(levels=(5, 5))},
         "backbone.features must be c4 with model.system mnc, not dc5"),
        ({"mask": ModelConfig().mask}, "mask.head must be mlp"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **changes)
    with pytest.raises(InputError, match=r"mnc.training_stages must be 3 or 5, not 4"):
        MNCConfig(training_stages=4)
