"""The training step: equality of one and eight devices, compilations, skipped steps, pmap and shard_map."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from variants import VARIANTS

from mrcnn_jax.models.systems import make_model
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step

IMAGES = 8
# batch norm, as devices must agree on its statistics too; without weight decay only gradients change weights
MODEL = tiny.model_config(norm="batch", pyramid_norm="batch")
EXPERIMENT = tiny.experiment(MODEL, learning_rate=0.05, weight_decay=0.0)
UNEVEN = tiny.batch([0, 4, 0, 0, 1, 0, 0, 3])
LOSSES = ("loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask")


class Trainer:
    """The step on a number of devices, and initial states for it."""

    def __init__(self, devices: int, experiment=EXPERIMENT):
        self.devices = jax.devices()[:devices]
        model = make_model(experiment.model, remat=experiment.train.remat)
        self.optimizer = make_optimizer(experiment.train, experiment.model, IMAGES)
        self.compiled = make_train_step(model, self.optimizer, experiment, self.devices)
        self.variables = jax.tree.map(np.asarray, tiny.variables(experiment.model))

    def state(self, variables=None, step: int = 0):
        state = create_state(jax.tree.map(jnp.array, variables or self.variables), self.optimizer)
        return tiny.replicate(state.replace(step=jnp.int32(step)), self.devices)

    def __call__(self, state, batch):
        state, metrics = self.compiled(state, tiny.spread(batch, len(self.devices)))
        return state, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def one():
    return Trainer(1)


@pytest.fixture(scope="module")
def eight():
    return Trainer(8)


def assert_equal_updates(one, eight):
    """Takes a step with as different numbers of RoIs and masks on the devices as possible."""
    outcomes = [trainer(trainer.state(step=5), UNEVEN) for trainer in (one, eight)]
    (state, metrics), (spread_state, spread_metrics) = outcomes
    assert metrics.keys() == spread_metrics.keys() and {"loss", "gradient_norm", "failed"} < metrics.keys()
    for name in metrics:
        assert spread_metrics[name] == pytest.approx(metrics[name], rel=1e-4), name
    before = tiny.names_and_leaves(one.state().params)
    after, spread_after = tiny.names_and_leaves(state.params), tiny.names_and_leaves(spread_state.params)
    for name in before:
        update, spread_update = after[name] - before[name], spread_after[name] - before[name]
        tolerance = 1e-3 * np.abs(update).max() + 1e-8
        np.testing.assert_allclose(spread_update, update, atol=tolerance, err_msg=name)
    statistics, spread_statistics = (
        tiny.names_and_leaves(each.model_state) for each in (state, spread_state)
    )
    initial = tiny.names_and_leaves(one.variables)
    for name, leaf in statistics.items():
        np.testing.assert_allclose(spread_statistics[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (leaf != initial[name]).any(), name
    assert int(state.step) == int(spread_state.step) == 6
    assert int(spread_state.failures) == metrics["failed"] == 0
    return metrics, statistics


def test_eight_devices_give_the_update_of_one(one, eight):
    metrics, statistics = assert_equal_updates(one, eight)
    assert metrics.keys() == {"loss", *LOSSES, "gradient_norm", "failed"} and statistics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FCIS", "MNC"])
def test_eight_devices_give_the_update_of_one_of_other_systems(name):
    config = replace(VARIANTS[name], num_classes=tiny.CLASSES)
    experiment = tiny.experiment(config, learning_rate=0.05, weight_decay=0.0)
    assert_equal_updates(*(Trainer(devices, experiment) for devices in (1, 8)))


def test_the_loss_is_the_sum_of_its_terms(one):
    _, metrics = one(one.state(), UNEVEN)
    assert metrics["loss"] == pytest.approx(sum(metrics[name] for name in LOSSES), rel=1e-6)
    assert min(metrics[name] for name in LOSSES) > 0


def test_gradients_reach_every_parameter(one):
    before = tiny.names_and_leaves(one.state().params)
    state, _ = one(one.state(), tiny.batch([2, 4, 1, 3, 2, 4, 1, 3]))
    for name, leaf in tiny.names_and_leaves(state.params).items():
        assert (leaf != before[name]).any(), name


def test_one_batch_is_overfitted(one):
    """Each loss is compared with its maximum: that of boxes first rises, as early positives are objects."""
    batch, state, history = tiny.batch([2, 1, 3, 0, 2, 1, 4, 1]), one.state(), []

    def has_fallen(name):
        fives = np.mean(np.reshape([metrics[name] for metrics in history], (-1, 5)), axis=1)
        return fives[-3:].max() < 0.5 * fives.max()

    def is_overfitted():
        return all(map(has_fallen, LOSSES)) and history[-1]["loss"] < 0.3 * history[0]["loss"]

    while len(history) < 150 and not (len(history) > 15 and is_overfitted()):
        for _ in range(5):
            state, metrics = one(state, batch)
            history.append(metrics)
    assert is_overfitted(), history[-1]


def test_two_runs_are_equal_to_the_last_bit(eight):
    outcomes = []
    for _ in range(2):
        state = eight.state()
        for seed in range(3):
            state, metrics = eight(state, tiny.batch([1, 0, 2, 3, 4, 0, 1, 2], seed=seed))
        outcomes.append((state, metrics))
    tiny.assert_same(*outcomes)


def test_samples_depend_on_the_step(one):
    """Anchors and RoIs are drawn by the number of the step, so that a resumed run draws the same."""
    losses = [one(one.state(step=step), UNEVEN)[1]["loss"] for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_one_compilation_per_padded_size_for_any_number_of_objects(eight):
    compiled = []

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about)

    jax.monitoring.register_event_duration_secs_listener(listen)
    state, _ = eight(eight.state(), UNEVEN)
    counts = [0] * 8, [4] * 8, [1] * 8, [0, 1] * 4, [0, 1, 2, 3] * 2
    batches = [tiny.batch(each, seed=seed) for seed, each in enumerate(counts)]
    compiled.clear()
    for batch in batches:
        state, metrics = eight(state, batch)
        assert np.isfinite(list(metrics.values())).all()
    assert not compiled, compiled
    assert int(state.failures) == 0
    portrait = [tiny.batch(counts, height=96) for counts in ([0] * 8, [3] * 8, [1, 0] * 4)]
    for batch in portrait:
        state, _ = eight(state, batch)
    assert len(compiled) == 1, compiled


@pytest.mark.parametrize("poison", [np.nan, 1e38, 1e6])
def test_steps_with_too_large_or_non_finite_loss_are_skipped(eight, poison):
    variables = jax.tree.map(np.copy, eight.variables)
    variables["params"]["mask"]["conv1"]["kernel"][1, 1, 0, 0] = poison
    state, metrics = eight(eight.state(variables, step=3), UNEVEN)
    assert not metrics["loss"] < EXPERIMENT.train.max_loss or not np.isfinite(metrics["gradient_norm"])
    assert np.isfinite([metrics["loss"], metrics["gradient_norm"]]).all() == (poison == 1e6)
    assert int(state.failures) == metrics["failed"] == 1 and int(state.step) == 4
    before = eight.state(variables)
    for part in ("params", "model_state", "opt_state"):
        tiny.assert_same(getattr(state, part), getattr(before, part))
    state, _ = eight(state, UNEVEN)
    assert int(state.failures) == 2 and int(state.step) == 5


# ---- distribution and accumulation ----


def small():
    """The cheapest detector with both stages and masks; no batch norm, which ties images together."""
    model = tiny.model_config(norm="group")
    backbone, roi = replace(model.backbone, features="c5"), replace(model.roi, levels=(5, 5))
    model = replace(model, backbone=backbone, roi=roi, rpn=replace(model.rpn, anchor_sizes=(16, 32)))
    return tiny.experiment(model, learning_rate=0.05, weight_decay=0.0, clip_norm=0.0, momentum=0.0)


def trainer(devices: int, **train) -> Trainer:
    experiment = small()
    settings = replace(experiment.train, images_per_device=IMAGES // devices, **train)
    return Trainer(devices, replace(experiment, train=settings))


def compiled(trainer: Trainer, batch):
    return trainer.compiled.lower(trainer.state(), tiny.spread(batch, len(trainer.devices)))


def updates(trainer: Trainer, batch) -> dict[str, np.ndarray]:
    states = trainer.state(), trainer(trainer.state(), batch)[0]
    before, after = (tiny.names_and_leaves(state.params) for state in states)
    return {name: after[name] - before[name] for name in before}


def test_equal_settings_share_one_step():
    """So that a second run of a process neither traces nor compiles again."""
    first = trainer(2)
    assert trainer(2, steps=7, log_every=3).compiled is first.compiled
    for changed in (trainer(1), trainer(2, seed=1), trainer(2, learning_rate=1.0), trainer(2, accumulate=2)):
        assert changed.compiled is not first.compiled


@pytest.mark.parametrize("devices", [1, 8])
def test_pmap_and_shard_map_lower_to_the_same_program(devices):
    """So that their results are the same to the last bit."""
    trainers = [trainer(devices, parallel=parallel) for parallel in ("pmap", "shard_map")]
    texts = [compiled(each, UNEVEN).as_text() for each in trainers]
    first, second = (re.sub(r"^module @\w+", "module", text) for text in texts)
    assert first == second and len(first) > 100_000


def test_accumulation_and_remat_give_the_same_update():
    """Both halves of the batch are equal, so that the divisors of both parts are."""
    batch = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), tiny.batch([2, 0, 4, 1]))
    expected, found = updates(trainer(1), batch), updates(trainer(1, accumulate=2, remat=True), batch)
    for name, update in expected.items():
        tolerance = 1e-3 * np.abs(update).max() + 1e-8
        np.testing.assert_allclose(found[name], update, atol=tolerance, err_msg=name)


def test_two_all_reduces_and_the_configured_dtype():
    """One sums all counts, the other all gradients and metrics."""
    lowered = compiled(trainer(8), UNEVEN)
    assert len(re.findall(r"= .* all-reduce(?:-start)?\(", lowered.compile().as_text())) == 2
    assert "bf16" not in lowered.as_text()
    halved = compiled(trainer(8, reduce_dtype="bfloat16"), UNEVEN).as_text()
    reduced = re.findall(r"\}\) : \(tensor<(?:\w+x)*(\w+)>\) -> tensor<[^>]*>$", halved, re.MULTILINE)
    assert reduced.count("bf16") == len(jax.tree.leaves(trainer(1).variables["params"]))


def test_objects_without_a_mask_teach_no_mask(one, eight):
    """The update does not depend on what lies where their masks would be, on one device and on eight."""
    has_mask = UNEVEN.valid & (np.arange(tiny.SLOTS) > 1)
    garbage = np.where(has_mask[..., None, None], UNEVEN.masks, 1 - UNEVEN.masks)
    some, other = UNEVEN.replace(has_mask=has_mask), UNEVEN.replace(has_mask=has_mask, masks=garbage)
    (state, metrics), (other_state, _) = one(one.state(), some), one(one.state(), other)
    tiny.assert_same(state, other_state)
    assert metrics["loss_mask"] > 0
    assert eight(eight.state(), some)[1]["loss_mask"] == pytest.approx(metrics["loss_mask"], rel=1e-4)
    assert one(one.state(), UNEVEN.replace(has_mask=np.zeros_like(has_mask)))[1]["loss_mask"] == 0
