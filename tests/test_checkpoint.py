"""Checkpoints: everything comes back, only what is complete is seen, and another model is refused."""

import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mrcnn_jax import checkpoint
from mrcnn_jax.checkpoint import DAMAGED, Checkpoints, DamagedCheckpointError
from mrcnn_jax.data.shapes import INFO
from mrcnn_jax.errors import InputError, TrainingError
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
    def steps(self):
        return Checkpoints(self.directory).steps


@pytest.fixture
def checkpoints(tmp_path):
    return Reopened(tmp_path / "checkpoints")


@pytest.mark.parametrize("model, settings", [(FROZEN, {}), (BATCH, {}), (BATCH, {"optimizer": "adamw"})])
def test_everything_comes_back_to_the_last_bit(checkpoints, model, settings):
    state, experiment = state_of(model, **settings), tiny.experiment(model, **settings)
    assert checkpoints.newest() is None
    checkpoints.save(7, state, 56, experiment, INFO)
    saved = checkpoints.newest()
    assert saved[:4] == (7, experiment, INFO, 56) and checkpoints.steps == [7]
    restored = saved.state(jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    tiny.assert_same(restored, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("model, collections", [(FROZEN, {"params", "frozen"}), (BATCH, {"params", "batch_stats"})])
def test_inference_takes_the_variables_alone(checkpoints, model, collections):
    state = state_of(model)
    checkpoints.save(7, state, 56, tiny.experiment(model), INFO)
    variables = checkpoints.newest().variables
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
    tiny.assert_same(checkpoints.read(7).state(state), expected)
    checkpoints.close()


def test_the_newest_are_kept(checkpoints, tmp_path):
    for step in (3, 6, 9):
        checkpoints.save(step, state_of(FROZEN, seed=step), 8 * step, tiny.experiment(FROZEN), INFO)
    assert checkpoints.steps == [6, 9]
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [6, 9]
    tiny.assert_same(checkpoints.read(6).state(state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_what_is_not_complete_is_not_seen(checkpoints, tmp_path):
    """What a process leaves behind that is killed while it writes: Orbax renames a checkpoint when it is complete."""
    checkpoints.save(3, state_of(FROZEN), 24, tiny.experiment(FROZEN), INFO)
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert checkpoints.newest().step == 3
    checkpoints.save(6, state_of(FROZEN, seed=6), 48, tiny.experiment(FROZEN), INFO)
    tiny.assert_same(checkpoints.read(6).state(state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_another_model_is_refused_by_the_name_of_an_array(checkpoints):
    checkpoints.save(7, state_of(BATCH), 56, tiny.experiment(BATCH), INFO)
    saved = checkpoints.newest()
    with pytest.raises(InputError) as refusal:
        saved.state(state_of(tiny.model_config(num_classes=5, norm="batch")))
    message = str(refusal.value)
    assert "is of another model: 12 arrays differ, the first is " in message  # three layers' kernels and biases, and their momentum
    assert "classes.bias, (4,) in the checkpoint and (6,) in the experiment" in message
    with pytest.raises(InputError, match=r"is of another model: .* absent in the experiment$"):
        saved.state(state_of(FROZEN))


# ---- damage ----

# reads that Orbax has not waited for when another failed
of_orbax = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def largest(directory):
    return max((path for path in directory.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(directory):
    """A bit in the middle of the largest file, which holds arrays."""
    file = largest(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(directory):
    file = largest(directory)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose(directory):
    largest(directory).unlink()


def lose_about(directory):
    shutil.rmtree(directory / "about")


@of_orbax
@pytest.mark.parametrize("damage", [flip, cut, lose, lose_about])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpoints, tmp_path, damage):
    for step in (3, 6):
        checkpoints.save(step, state_of(FROZEN, seed=step), 8 * step, tiny.experiment(FROZEN), INFO)
    damage(tmp_path / "checkpoints" / "6")
    looking = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert looking.newest().step == 3 and looking.steps == [3, 6]  # who only looks leaves it where it is
    looking.close()
    warnings = []
    saved = checkpoints.newest(warnings.append)
    tiny.assert_same(saved.state(state_of(FROZEN)), state_of(FROZEN, seed=3))
    (warning,) = warnings
    assert str(tmp_path / "checkpoints" / "6") in warning and warning.endswith("; step 3 is used") and "\n" not in warning
    assert checkpoints.steps == [3] and (tmp_path / DAMAGED / "6").is_dir()
    checkpoints.save(6, state_of(FROZEN, seed=6), 48, tiny.experiment(FROZEN), INFO)  # the run comes to this step once more
    tiny.assert_same(checkpoints.newest().state(state_of(FROZEN)), state_of(FROZEN, seed=6))


def test_a_bit_that_the_storage_does_not_miss_is_found_by_the_digests(checkpoints, monkeypatch):
    """As if another array had come back, whatever Orbax checks itself."""
    checkpoints.save(6, state_of(FROZEN), 48, tiny.experiment(FROZEN), INFO)
    monkeypatch.setattr(checkpoint, "_digest", lambda leaf: zlib.crc32(leaf.tobytes()) ^ (leaf.shape == (7, 7, 3, 8)))
    with pytest.raises(DamagedCheckpointError, match=r"6 is damaged: \d arrays are not what was saved, the first is .*stem"):
        checkpoints.read(6)


@of_orbax
@pytest.mark.parametrize("mine, theirs", [(True, False), (False, True), (True, True)])
def test_processes_agree_on_a_checkpoint_that_all_can_read(checkpoints, tmp_path, monkeypatch, mine, theirs):
    """What one process cannot read (``mine``, or the other's, whose view is made up) is used by none, and set aside once."""
    for step in (3, 6):
        checkpoints.save(step, state_of(FROZEN, seed=step), 8 * step, tiny.experiment(FROZEN), INFO)
    if mine:
        flip(tmp_path / "checkpoints" / "6")
    other = {"step": 3, "damaged": {"6": "checkpoint 6 is damaged over there"}} if theirs else {"step": 6, "damaged": {}}
    monkeypatch.setattr(checkpoint.processes, "gather", lambda view: [view, other])
    warnings = []
    saved = checkpoints.newest(warnings.append)
    tiny.assert_same(saved.state(state_of(FROZEN)), state_of(FROZEN, seed=3))
    assert len(warnings) == 1 and (tmp_path / DAMAGED / "6").is_dir() and checkpoints.steps == [3]


@of_orbax
def test_nothing_is_started_anew_over_a_run_whose_checkpoints_are_all_damaged(checkpoints, tmp_path):
    checkpoints.save(3, state_of(FROZEN), 24, tiny.experiment(FROZEN), INFO)
    cut(tmp_path / "checkpoints" / "3")
    with pytest.raises(InputError, match="no checkpoint in .* can be read; the newest: checkpoint .*3 "):
        checkpoints.newest()
    assert checkpoints.steps == [3]


@of_orbax
def test_a_checkpoint_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    resource = pytest.importorskip("resource")
    written = Checkpoints(tmp_path / "checkpoints")
    written.save(3, state_of(FROZEN), 24, tiny.experiment(FROZEN), INFO)
    written.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may grow beyond this, as on a disk that is full
    try:
        with pytest.raises(TrainingError, match=r"^a checkpoint cannot be written to .*checkpoints \(.*\): make room there") as failure:
            written.save(6, state_of(FROZEN), 48, tiny.experiment(FROZEN), INFO)
            written.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(failure.value)
    written.close()
    again = Checkpoints(tmp_path / "checkpoints")
    tiny.assert_same(again.newest().state(state_of(FROZEN)), state_of(FROZEN))
