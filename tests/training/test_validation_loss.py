"""Validation losses: those of training, on images as the detector sees them, on any number of devices."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny
import tiny_run

from mrcnn_jax.config import AUGMENTATIONS, TrainConfig
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.pipeline import stack_examples
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference import program
from mrcnn_jax.inspection.run import _best
from mrcnn_jax.models.systems import make_model
from mrcnn_jax.training import validation_loss
from mrcnn_jax.training.best import BestEvaluation
from mrcnn_jax.training.losses import batch_losses
from mrcnn_jax.training.warm_start import resolve_dataset_fields
from mrcnn_jax.visualize.plots import curves

IMAGES = 5


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return open_dataset(tiny_run.dataset(tmp_path_factory.getbasetemp()), "validation")


@pytest.fixture(scope="module")
def experiment(split):
    """Strong augmentation and several edges, which have no effect here."""
    given = tiny_run.run_experiment(split.directory, validation_loss_images=IMAGES)
    data = dataclasses.replace(given.data, augment=AUGMENTATIONS["strong"], short_edge=(48, 64))
    return resolve_dataset_fields(dataclasses.replace(given, data=data), split)


@pytest.fixture(scope="module")
def variables(experiment):
    return tiny.variables(experiment.model)


@pytest.fixture(scope="module")
def losses(experiment, split, variables):
    return validation_loss.validation_losses(experiment, split, variables)


def test_they_are_the_training_losses_of_images_that_are_not_augmented(
    experiment, split, variables, losses, monkeypatch
):
    """Against ``batch_losses`` of all images at once."""
    data = dataclasses.replace(experiment.data, augment=AUGMENTATIONS["none"], short_edge=(64,))
    index = [0, 2, 4, 7, 9]  # of 0, 2.25, 4.5, 6.75, 9
    made = validation_loss.training_example
    examples = [made(split[i], split.info, data, np.random.default_rng(1)) for i in index]
    keys = jax.vmap(lambda image: jax.random.fold_in(jax.random.key(0), image))(np.array(index, np.int32))

    def compute(batch, keys):
        return make_model(experiment.model).apply(variables, batch, keys, method=batch_losses)

    mapped = jax.pmap(compute, axis_name="devices", devices=jax.devices()[:1])
    batch = jax.tree.map(lambda leaf: leaf[None], stack_examples(examples))
    expected = {name: float(value[0]) for name, value in mapped(batch, keys[None]).items()}
    assert losses.keys() == {f"validation_{name}" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(losses[f"validation_{name}"], value, rtol=2e-5, err_msg=name)


def test_they_do_not_depend_on_devices_nor_processes(experiment, split, variables, losses, monkeypatch):
    """One device, on which XLA adds in another order; then two processes, each with a share of the images."""

    class Gathering(Exception):
        pass

    def share_of(process, gather):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(validation_loss, "all_gather_object", gather)
        return validation_loss.validation_losses(experiment, split, variables)

    def stop(sums):
        raise Gathering(sums)

    one, asked = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("devices",)), []
    monkeypatch.setattr(program, "local_mesh", lambda: one)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    program.compiled.cache_clear()
    watch = lambda: asked.append(1)  # noqa: E731
    alone = validation_loss.validation_losses(experiment, split, variables, watch=watch)
    assert alone == pytest.approx(losses, rel=1e-6) and len(asked) == IMAGES
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(Gathering) as other:
        share_of(1, stop)
    assert share_of(0, lambda sums: [sums, other.value.args[0]]) == alone
    program.compiled.cache_clear()


def test_none_are_computed_unless_they_are_asked_for(experiment, split):
    train = dataclasses.replace(experiment.train, validation_loss_images=0)
    without = dataclasses.replace(experiment, train=train)
    assert validation_loss.validation_losses(without, split, {}) == {}


def test_the_best_evaluation_may_be_that_of_the_least_loss():
    with pytest.raises(InputError, match="train.monitor validation_loss needs train.validation_loss_images"):
        TrainConfig(monitor="validation_loss")
    config = TrainConfig(
        monitor="validation_loss", validation_loss_images=1, evaluate_every=1, keep_best=True, patience=2
    )
    lines = [
        {"step": 1, "segm/AP": 50.0},  # before the loss was computed
        {"step": 2, "segm/AP": 1.0, "validation_loss": 3.0},
        {"step": 3, "segm/AP": 9.0, "validation_loss": float("nan")},
    ]
    best, metrics = BestEvaluation(config, lines), {"segm": {"AP": 99.0}}
    assert best.step == 2 and _best(lines[:2], "validation_loss") == lines[1]
    assert _best(lines, "ap") == lines[0] and _best(lines[:1], "validation_loss") is None
    assert best.add(4, metrics, 2.5) and not best.add(5, metrics, 2.5) and not best.is_exhausted
    assert not best.add(6, metrics, 2.6) and best.is_exhausted and best.step == 4


def test_curves_show_the_validation_loss_beside_the_loss():
    history = [{"step": step, "loss": 2.0, "learning_rate": 0.1} for step in (1, 2)]
    evaluation = {"step": 2, "segm/AP": 3.0, "validation_loss": 2.5, "validation_loss_box": 1.0}
    losses, _, precision = curves(history, [evaluation]).axes
    labels = [axis.get_legend_handles_labels()[1] for axis in (losses, precision)]
    assert labels == [["loss", "validation_loss"], ["segm/AP"]]
