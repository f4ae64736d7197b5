"""The training step: the same on one device and on eight, one program a padded size, and nothing learned from what is not finite."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step

IMAGES = 8
# batch norm, for its statistics are one more thing that all devices must agree on; no weight decay, so that only gradients move a weight
EXPERIMENT = tiny.experiment(tiny.model_config(norm="batch", pyramid_norm="batch"), learning_rate=0.05, weight_decay=0.0)
UNEVEN = tiny.batch([0, 4, 0, 0, 1, 0, 0, 3])
LOSSES = ("loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask")


class Trainer:
    """The compiled step on so many devices, and fresh states for it."""

    def __init__(self, devices: int, experiment=EXPERIMENT):
        self.devices = jax.devices()[:devices]
        model = MaskRCNN(experiment.model, remat=experiment.train.remat)
        self.optimizer = make_optimizer(experiment.train, experiment.model, IMAGES)
        self.compiled = make_train_step(model, self.optimizer, experiment, self.devices)
        self.variables = jax.tree.map(np.asarray, tiny.variables(experiment.model))

    def state(self, variables=None, step: int = 0):
        """Replicated as the training loop does it, and safe to donate."""
        state = create_state(jax.tree.map(jnp.array, variables or self.variables), self.optimizer).replace(step=jnp.int32(step))
        mesh = jax.sharding.Mesh(self.devices, ("devices",))
        return jax.device_put(jax.tree.map(np.array, state), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))

    def __call__(self, state, batch):
        state, metrics = self.compiled(state, tiny.spread(batch, len(self.devices)))
        return state, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def one():
    return Trainer(1)


@pytest.fixture(scope="module")
def eight():
    return Trainer(8)


def test_eight_devices_make_the_update_of_one(one, eight):
    """Images without objects beside full ones, so that the devices' own numbers of RoIs and masks differ as much as they can."""
    outcomes = [trainer(trainer.state(step=5), UNEVEN) for trainer in (one, eight)]
    (state, metrics), (spread_state, spread_metrics) = outcomes
    assert metrics.keys() == spread_metrics.keys() == {"loss", *LOSSES, "gradient_norm", "failed"}
    for name in metrics:
        assert spread_metrics[name] == pytest.approx(metrics[name], rel=1e-4), name
    before = tiny.names_and_leaves(one.state().params)
    after, spread_after = tiny.names_and_leaves(state.params), tiny.names_and_leaves(spread_state.params)
    for name in before:
        update, spread_update = after[name] - before[name], spread_after[name] - before[name]
        np.testing.assert_allclose(spread_update, update, atol=1e-3 * np.abs(update).max() + 1e-8, err_msg=name)
    statistics, spread_statistics = (tiny.names_and_leaves(each.model_state) for each in (state, spread_state))
    assert statistics
    for name, leaf in statistics.items():
        np.testing.assert_allclose(spread_statistics[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
        assert (leaf != tiny.names_and_leaves(one.variables)[name]).any(), name
    assert int(state.step) == int(spread_state.step) == 6 and int(spread_state.failures) == metrics["failed"] == 0


def test_the_loss_is_the_sum_of_its_terms(one):
    _, metrics = one(one.state(), UNEVEN)
    assert metrics["loss"] == pytest.approx(sum(metrics[name] for name in LOSSES), rel=1e-6)
    assert min(metrics[name] for name in LOSSES) > 0


def test_gradients_reach_every_parameter(one):
    before = tiny.names_and_leaves(one.state().params)
    state, _ = one(one.state(), tiny.batch([2, 4, 1, 3, 2, 4, 1, 3]))
    for name, leaf in tiny.names_and_leaves(state.params).items():
        assert (leaf != before[name]).any(), name


def test_one_batch_is_learned_by_heart(one):
    """The box loss rises before it falls, for at first only the objects themselves are positive RoIs; so each loss is held against its peak."""
    batch, state, history = tiny.batch([2, 1, 3, 0, 2, 1, 4, 1]), one.state(), []
    for _ in range(150):
        state, metrics = one(state, batch)
        history.append(metrics)
    for name in LOSSES:
        fives = np.mean(np.reshape([metrics[name] for metrics in history], (-1, 5)), axis=1)
        assert fives[-3:].max() < 0.5 * fives.max(), (name, fives)
    assert history[-1]["loss"] < 0.3 * history[0]["loss"]


def test_the_same_twice_to_the_last_bit(eight):
    outcomes = []
    for _ in range(2):
        state = eight.state()
        for seed in range(3):
            state, metrics = eight(state, tiny.batch([1, 0, 2, 3, 4, 0, 1, 2], seed=seed))
        outcomes.append((state, metrics))
    tiny.assert_same(*outcomes)


def test_each_step_samples_anew(one):
    """Anchors and RoIs are drawn by the step's number: an interrupted run that resumes draws what it would have drawn."""
    losses = [one(one.state(step=step), UNEVEN)[1]["loss"] for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


def test_one_program_a_padded_size_whatever_the_images_hold(eight):
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: compiled.append(about) if event == "/jax/core/compile/backend_compile_duration" else None
    )
    state, _ = eight(eight.state(), UNEVEN)
    batches = [tiny.batch(counts, seed=seed) for seed, counts in enumerate([[0] * 8, [4] * 8, [1] * 8, [0, 1] * 4, [0, 1, 2, 3] * 2])]
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
def test_nothing_is_learned_from_what_is_not_finite_or_beyond_measure(eight, poison):
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


# ---- how the work is spread ----


def small():
    """The cheapest detector to compile that has both stages and masks. No batch norm, which would tie parts and devices together more than losses do."""
    model = tiny.model_config(norm="group")
    model = replace(model, backbone=replace(model.backbone, features="c5"), roi=replace(model.roi, levels=(5, 5)))
    return tiny.experiment(model, learning_rate=0.05, weight_decay=0.0, clip_norm=0.0, momentum=0.0)


def trainer(devices: int, **train) -> Trainer:
    experiment = small()
    return Trainer(devices, replace(experiment, train=replace(experiment.train, images_per_device=IMAGES // devices, **train)))


def compiled(trainer: Trainer, batch):
    return trainer.compiled.lower(trainer.state(), tiny.spread(batch, len(trainer.devices)))


def updates(trainer: Trainer, batch) -> dict[str, np.ndarray]:
    before, after = (tiny.names_and_leaves(state.params) for state in (trainer.state(), trainer(trainer.state(), batch)[0]))
    return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_pmap_and_shard_map_give_the_compiler_the_same_program(devices):
    """So that their results are the same to the last bit."""
    texts = [compiled(trainer(devices, parallel=parallel), UNEVEN).as_text() for parallel in ("pmap", "shard_map")]
    first, second = (re.sub(r"^module @\w+", "module", text) for text in texts)
    assert first == second and len(first) > 100_000


def test_parts_and_rematerialisation_make_the_same_update():
    """Both halves of the batch hold the same images, so that the parts count alike."""
    batch = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), tiny.batch([2, 0, 4, 1]))
    expected, found = updates(trainer(1), batch), updates(trainer(1, accumulate=2, remat=True), batch)
    for name, update in expected.items():
        np.testing.assert_allclose(found[name], update, atol=1e-3 * np.abs(update).max() + 1e-8, err_msg=name)


def test_gradients_travel_once_and_in_the_type_asked_for():
    """Of what is added up over the devices, all counts go together, and all gradients with the metrics."""
    lowered = compiled(trainer(8), UNEVEN)
    assert len(re.findall(r"= .* all-reduce(?:-start)?\(", lowered.compile().as_text())) == 2
    assert "bf16" not in lowered.as_text()
    halved = compiled(trainer(8, reduce_dtype="bfloat16"), UNEVEN).as_text()
    travelling = re.findall(r"\}\) : \(tensor<(?:\w+x)*(\w+)>\) -> tensor<[^>]*>$", halved, re.MULTILINE)
    assert travelling.count("bf16") == len(jax.tree.leaves(trainer(1).variables["params"]))
