"""Checkpoints: everything comes back, only what is complete is seen, and another model is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax.checkpoint import Checkpoints
from mrcnn_jax.data.shapes import INFO
from mrcnn_jax.errors import InputError
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state


def state_of(model, seed: int = 0, **train):
    """A state as after some steps, with momentum."""
    optimizer = make_optimizer(tiny.experiment(model, **train).train, model, 8)
    state = create_state(tiny.variables(model, seed), optimizer)
    rng = np.random.default_rng(seed)
    moments = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) if leaf.ndim else leaf + 7, state.opt_state)
    return state.replace(step=jnp.int32(7), opt_state=moments)


FROZEN, BATCH = tiny.model_config(norm="frozen", freeze_stages=2), tiny.model_config(norm="batch")


class Reopened:
    """The checkpoints of a directory, opened anew for every use as by another process."""

    def __init__(self, directory):
        self.directory = directory

    def __getattr__(self, name):
        def call(*args):
            checkpoints = Checkpoints(self.directory, keep=2)
            result = getattr(checkpoints, name)(*args)
            checkpoints.wait()
            checkpoints.close()
            return result

        return call

    @property
    def latest(self):
        return Checkpoints(self.directory).latest


@pytest.fixture
def checkpoints(tmp_path):
    return Reopened(tmp_path / "checkpoints")


@pytest.mark.parametrize("model, settings", [(FROZEN, {}), (BATCH, {}), (BATCH, {"optimizer": "adamw"})])
def test_everything_comes_back_to_the_last_bit(checkpoints, model, settings):
    state, experiment = state_of(model, **settings), tiny.experiment(model, **settings)
    assert checkpoints.latest is None
    checkpoints.save(7, state, 56, experiment, INFO)
    assert checkpoints.latest == 7
    assert checkpoints.about(7) == (experiment, INFO, 56)
    restored = checkpoints.restore(7, jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    tiny.assert_same(restored, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("model, collections", [(FROZEN, {"params", "frozen"}), (BATCH, {"params", "batch_stats"})])
def test_inference_takes_the_variables_alone(checkpoints, model, collections):
    state = state_of(model)
    checkpoints.save(7, state, 56, tiny.experiment(model), INFO)
    variables = checkpoints.restore_variables(7)
    assert set(variables) == collections
    tiny.assert_same(variables, {"params": state.params, **state.model_state})


def test_the_state_may_change_while_it_is_written(tmp_path):
    """On CPU a NumPy view of a donated buffer shows what the next step writes into it."""
    state = jax.tree.map(np.array, state_of(BATCH))
    expected = jax.tree.map(np.copy, state)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(7, state, 56, tiny.experiment(BATCH), INFO)
    for leaf in jax.tree.leaves(state):
        leaf.fill(0)
    checkpoints.wait()
    tiny.assert_same(checkpoints.restore(7, state), expected)
    checkpoints.close()


def test_the_newest_are_kept(checkpoints, tmp_path):
    for step in (3, 6, 9):
        checkpoints.save(step, state_of(FROZEN, seed=step), 8 * step, tiny.experiment(FROZEN), INFO)
    assert checkpoints.latest == 9
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [6, 9]
    tiny.assert_same(checkpoints.restore(6, state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_what_is_not_complete_is_not_seen(checkpoints, tmp_path):
    """What a process leaves behind that is killed while it writes: Orbax renames a checkpoint when it is complete."""
    checkpoints.save(3, state_of(FROZEN), 24, tiny.experiment(FROZEN), INFO)
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert checkpoints.latest == 3
    checkpoints.save(6, state_of(FROZEN, seed=6), 48, tiny.experiment(FROZEN), INFO)
    tiny.assert_same(checkpoints.restore(6, state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_another_model_is_refused_by_the_name_of_an_array(checkpoints):
    checkpoints.save(7, state_of(BATCH), 56, tiny.experiment(BATCH), INFO)
    with pytest.raises(InputError) as refusal:
        checkpoints.restore(7, state_of(tiny.model_config(num_classes=5, norm="batch")))
    message = str(refusal.value)
    assert "is of another model: 12 arrays differ, the first is " in message  # three layers' kernels and biases, and their momentum
    assert "classes.bias, (4,) in the checkpoint and (6,) in the experiment" in message
    with pytest.raises(InputError, match=r"is of another model: .* absent in the experiment$"):
        checkpoints.restore(7, state_of(FROZEN))
