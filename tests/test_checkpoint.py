"""Checkpoints: round trips, damage, agreement of processes, and write errors."""

import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax import checkpoint
from mrcnn_jax.checkpoint import DAMAGED, CheckpointStore, DamagedCheckpointError
from mrcnn_jax.data.shapes import INFO
from mrcnn_jax.errors import InputError, TrainingError
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state


@cache
def state_of(model, seed: int = 0, **train):
    """Returns a state as after some steps, with momentum."""
    optimizer = make_optimizer(tiny.experiment(model, **train).train, model, 8)
    state = create_state(tiny.variables(model, seed), optimizer)
    rng = np.random.default_rng(seed)

    def moment(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype) if leaf.ndim else leaf + 7

    return state.replace(step=jnp.int32(7), opt_state=jax.tree.map(moment, state.opt_state))


FROZEN, BATCH = tiny.model_config(norm="frozen", freeze_stages=2), tiny.model_config(norm="batch")


def save(store, step):
    """Saves the state of FROZEN whose seed is the step."""
    store.save(step, state_of(FROZEN, seed=step), 8 * step, tiny.experiment(FROZEN), INFO)


class Reopened:
    """A store that is opened anew for every call, as by another process."""

    def __init__(self, directory):
        self.directory = directory

    def __getattr__(self, name):
        def call(*args):
            with CheckpointStore(self.directory, keep=2) as store:
                return getattr(store, name)(*args)

        return call

    @property
    def steps(self):
        return CheckpointStore(self.directory).steps


@pytest.fixture
def checkpoints(tmp_path):
    return Reopened(tmp_path / "checkpoints")


@pytest.mark.parametrize("model, settings", [(FROZEN, {}), (BATCH, {}), (BATCH, {"optimizer": "adamw"})])
def test_restored_state_equals_the_saved_one_bit_for_bit(checkpoints, model, settings):
    state, experiment = state_of(model, **settings), tiny.experiment(model, **settings)
    assert checkpoints.restore_latest() is None
    checkpoints.save(7, state, 56, experiment, INFO)
    saved = checkpoints.restore_latest()
    assert saved[:4] == (7, experiment, INFO, 56) and checkpoints.steps == [7]
    restored = saved.restore_state(jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    tiny.assert_same(restored, state)
    assert jax.tree.map(lambda leaf: leaf.dtype, restored) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize("model, collection", [(FROZEN, "frozen"), (BATCH, "batch_stats")])
def test_variables_are_parameters_and_model_state(checkpoints, model, collection):
    state = state_of(model)
    checkpoints.save(7, state, 56, tiny.experiment(model), INFO)
    variables = checkpoints.restore_latest().variables
    assert set(variables) == {"params", collection}
    tiny.assert_same(variables, {"params": state.params, **state.model_state})


def test_save_copies_the_state(tmp_path):
    """On CPU a NumPy view of a donated buffer shows what the next step writes into it."""
    state = jax.tree.map(np.array, state_of(BATCH))
    expected = jax.tree.map(np.copy, state)
    checkpoints = CheckpointStore(tmp_path / "checkpoints")
    checkpoints.save(7, state, 56, tiny.experiment(BATCH), INFO)
    for leaf in jax.tree.leaves(state):
        leaf.fill(0)
    checkpoints.wait()
    tiny.assert_same(checkpoints.restore(7).restore_state(state), expected)
    checkpoints.close()


def test_store_keeps_the_newest_checkpoints(checkpoints, tmp_path):
    for step in (3, 6, 9):
        save(checkpoints, step)
    assert checkpoints.steps == [6, 9]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [6, 9]
    tiny.assert_same(checkpoints.restore(6).restore_state(state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_incomplete_checkpoint_is_ignored(checkpoints, tmp_path):
    """A killed process leaves a temporary directory; Orbax renames a checkpoint when it is complete."""
    save(checkpoints, 3)
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert checkpoints.restore_latest().step == 3
    save(checkpoints, 6)
    tiny.assert_same(checkpoints.restore(6).restore_state(state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_restore_state_rejects_another_model(checkpoints):
    checkpoints.save(7, state_of(BATCH), 56, tiny.experiment(BATCH), INFO)
    saved = checkpoints.restore_latest()
    with pytest.raises(InputError) as error:
        saved.restore_state(state_of(tiny.model_config(num_classes=5, norm="batch")))
    message = str(error.value)
    # kernels and biases of three layers, and their momentum
    assert "is of another model: 12 arrays differ, the first is " in message
    assert "classes.bias, (4,) in the checkpoint and (6,) in the experiment" in message
    with pytest.raises(InputError, match=r"is of another model: .* absent in the experiment$"):
        saved.restore_state(state_of(FROZEN))


# ---- damage ----

# Orbax does not await its other reads when one of them fails
ignore_unawaited_reads = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def largest(directory):
    files = (path for path in directory.rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def flip(directory):
    """Flips a bit in the middle of the largest file, which holds arrays."""
    file = largest(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(directory):
    file = largest(directory)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove_largest(directory):
    largest(directory).unlink()


def remove_about(directory):
    shutil.rmtree(directory / "about")


@ignore_unawaited_reads
@pytest.mark.parametrize("damage", [flip, truncate, remove_largest, remove_about])
def test_damaged_checkpoint_is_moved_and_the_previous_one_used(checkpoints, tmp_path, damage):
    for step in (3, 6):
        save(checkpoints, step)
    damage(tmp_path / "checkpoints" / "6")
    looking = CheckpointStore(tmp_path / "checkpoints", read_only=True)
    assert looking.restore_latest().step == 3 and looking.steps == [3, 6]  # and nothing is moved
    looking.close()
    warnings = []
    saved = checkpoints.restore_latest(warnings.append)
    tiny.assert_same(saved.restore_state(state_of(FROZEN)), state_of(FROZEN, seed=3))
    (warning,) = warnings
    assert str(tmp_path / "checkpoints" / "6") in warning
    assert warning.endswith("; using step 3") and "\n" not in warning
    assert checkpoints.steps == [3] and (tmp_path / DAMAGED / "6").is_dir()
    save(checkpoints, 6)  # the resumed run reaches this step again
    tiny.assert_same(checkpoints.restore_latest().restore_state(state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_digests_detect_what_the_storage_does_not(checkpoints, monkeypatch):
    """Makes one array's digest differ, as if it had been read wrongly."""
    save(checkpoints, 6)
    digest = checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", lambda leaf: digest(leaf) ^ (leaf.shape == (7, 7, 3, 8)))
    message = r"6 is damaged: \d arrays differ from what was saved, the first is .*stem"
    with pytest.raises(DamagedCheckpointError, match=message):
        checkpoints.restore(6)


def exchange_with(other):
    """Exchanges views with a made-up process, which goes back to the step agreed on."""

    def exchange(view):
        views = [view, dict(other)]
        other["step"] = min(one["step"] for one in views)
        return views

    return exchange


@ignore_unawaited_reads
@pytest.mark.parametrize("mine, theirs", [(True, False), (False, True), (True, True)])
def test_processes_agree_on_a_checkpoint_that_all_can_read(checkpoints, tmp_path, monkeypatch, mine, theirs):
    """A checkpoint that this process, or another whose view is made up, cannot read is used by none."""
    for step in (3, 6):
        save(checkpoints, step)
    if mine:
        flip(tmp_path / "checkpoints" / "6")
    other = {"step": 6, "damaged": {}}
    if theirs:
        other = {"step": 3, "damaged": {"6": "checkpoint 6 is damaged over there"}}
    monkeypatch.setattr(checkpoint.distributed, "all_gather_object", exchange_with(other))
    warnings = []
    saved = checkpoints.restore_latest(warnings.append)
    tiny.assert_same(saved.restore_state(state_of(FROZEN)), state_of(FROZEN, seed=3))
    assert len(warnings) == 1 and (tmp_path / DAMAGED / "6").is_dir() and checkpoints.steps == [3]


@ignore_unawaited_reads
def test_a_step_that_only_others_can_read_is_not_agreed_on(tmp_path, monkeypatch):
    """The other process can read the first two checkpoints, this one the first and the last."""
    with CheckpointStore(tmp_path / "checkpoints", keep=3) as checkpoints:
        for step in (3, 6, 9):
            save(checkpoints, step)
        flip(tmp_path / "checkpoints" / "6")
        other = {"step": 6, "damaged": {"9": "checkpoint 9 is damaged over there"}}
        monkeypatch.setattr(checkpoint.distributed, "all_gather_object", exchange_with(other))
        warnings = []
        assert checkpoints.restore_latest(warnings.append).step == 3
        assert len(warnings) == 2 and checkpoints.steps == [3]


@ignore_unawaited_reads
def test_restore_latest_raises_if_all_checkpoints_are_damaged(checkpoints, tmp_path):
    save(checkpoints, 3)
    truncate(tmp_path / "checkpoints" / "3")
    with pytest.raises(InputError, match="no checkpoint in .* can be read; the newest: checkpoint .*3 "):
        checkpoints.restore_latest()
    assert checkpoints.steps == [3]


@ignore_unawaited_reads
def test_write_error_is_one_sentence_and_keeps_earlier_checkpoints(tmp_path):
    resource = pytest.importorskip("resource")
    written = CheckpointStore(tmp_path / "checkpoints")
    save(written, 3)
    written.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # limits files, like a full disk
    try:
        message = r"^a checkpoint cannot be written to .*checkpoints \(.*\): free space or fix the cause"
        with pytest.raises(TrainingError, match=message) as failure:
            save(written, 6)
            written.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(failure.value)
    written.close()
    again = CheckpointStore(tmp_path / "checkpoints")
    tiny.assert_same(again.restore_latest().restore_state(state_of(FROZEN)), state_of(FROZEN, seed=3))
