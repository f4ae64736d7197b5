"""The best evaluation: comparison, patience, and what a run keeps and ends with."""

import dataclasses
import json

import pytest
import tiny
import tiny_run

from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import TrainConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import load, read_weights
from mrcnn_jax.inspection.inspect import inspect
from mrcnn_jax.training import loop
from mrcnn_jax.training.best import BestEvaluation, mean_precision
from mrcnn_jax.training.run_evaluation import RunEvaluation

KEEPING = TrainConfig(keep_best=True, patience=2, evaluate_every=1)


def metrics(box, mask):
    return {"bbox": {"AP": box, "AP50": 90.0}, "segm": {"AP": mask}}


def test_evaluations_are_compared_by_the_mean_precision_of_their_kinds():
    assert mean_precision(metrics(30.0, 20.0)) == 25
    assert mean_precision(metrics(None, 20.0)) == 20 and mean_precision(metrics(None, None)) == -1
    assert mean_precision({"proposals": {"AR100": 40.0, "AR1000": 55.0}}) == 55


def test_the_first_of_equal_evaluations_is_the_best_and_patience_counts_those_after_it():
    best = BestEvaluation(KEEPING, [])
    assert best.add(1, metrics(30, 20)) and not best.add(2, metrics(25, 25)) and not best.is_exhausted
    assert best.add(3, metrics(30, 21)) and not best.add(4, metrics(1, 1)) and not best.is_exhausted
    assert not best.add(5, metrics(1, 1)) and best.is_exhausted and best.step == 3


def test_a_resumed_run_counts_what_its_history_holds():
    lines = [
        {"step": 1, "loss": 2.0}, {"step": 1, "bbox/AP": 30.0, "bbox/AP50": 9.0, "segm/AP": 20.0},
        {"step": 2, "bbox/AP": 31.0, "segm/AP": None}, {"step": 3, "bbox/AP": 3.0, "segm/AP": 3.0},
    ]  # fmt: skip
    best = BestEvaluation(KEEPING, lines)
    assert (best.step, best.evaluated) == (2, 3)
    assert not best.add(4, metrics(31, 31)) and best.is_exhausted
    assert not BestEvaluation(dataclasses.replace(KEEPING, keep_best=False), []).add(1, metrics(1, 1))


def test_a_resumed_run_goes_on_from_the_checkpoint_that_is_kept():
    lines = [{"step": step, "segm/AP": score} for step, score in ((1, 30.0), (2, 20.0), (3, 25.0))]
    assert BestEvaluation(KEEPING, lines, kept=1).step == 1
    new = BestEvaluation(KEEPING, lines, kept=0)  # the setting is new
    assert new.step == 0 and new.add(4, metrics(None, 10)) and new.step == 4
    other = BestEvaluation(KEEPING, lines, kept=3)  # by what was monitored before
    assert other.step == 3 and not other.add(4, metrics(None, 25)) and other.add(5, metrics(None, 26))
    lost = BestEvaluation(KEEPING, lines[:2], kept=3)  # killed between its save and its entry in the history
    assert lost.add(3, metrics(None, 25))


@pytest.mark.parametrize("field, value", [("keep_best", True), ("patience", 3)])
def test_comparison_needs_evaluations_during_training(field, value):
    with pytest.raises(InputError, match=rf"train.{field} compares evaluations .* set train.evaluate_every"):
        TrainConfig(**{field: value})


def test_run_ends_early_with_its_best_checkpoint(tmp_path, tmp_path_factory, monkeypatch, capsys):
    """Evaluations after steps 1 to 4 are made up; a kill follows the second."""
    data = tiny_run.dataset(tmp_path_factory.getbasetemp())
    scores, asked = [10.0, 30.0, 20.0, 30.0], []
    evaluate = RunEvaluation.evaluate

    def made_up(self, variables):
        evaluation = evaluate(self, variables)
        step = int(self._run.state.step)
        asked.append(step)
        score = scores[step - 1]
        kinds = {kind: values | {"AP": score} for kind, values in evaluation.metrics.items()}
        return dataclasses.replace(evaluation, metrics=kinds)

    def killed(self, step, evaluation, picture=None):
        if step == 2:
            raise RuntimeError("killed")

    settings = {"evaluate_every": 1, "keep_best": True, "patience": 2, "log_every": 1}
    experiment = tiny_run.run_experiment(data, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(RunEvaluation, "evaluate", made_up)
        patch.setattr(RunEvaluation, "log_pictures", killed)
        with pytest.raises(RuntimeError, match="killed"):
            loop.train(experiment, tmp_path, tiny_run.recording_console())
    console = tiny_run.recording_console()
    with monkeypatch.context() as patch:
        patch.setattr(RunEvaluation, "evaluate", made_up)
        loop.train(experiment, tmp_path, console)
    assert "No evaluation since step 2 was better, so training ends at step 4 of 6" in console.file.getvalue()
    assert asked == [1, 2, 3, 4, 4, 4]  # at last the last state, and the best
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["2"]
    with CheckpointStore(tmp_path / "best", read_only=True) as store:
        best = store.restore(2)
    with CheckpointStore(tmp_path / "checkpoints", read_only=True) as store:
        newest = store.restore(4)
    capsys.readouterr()
    tiny.assert_same(read_weights(tmp_path).variables, best.variables)
    note = "loading step 2, the best; checkpoint newest would load step 4."
    assert capsys.readouterr().err == f"Note: {tmp_path}: {note}\n"
    tiny.assert_same(read_weights(tmp_path, "newest").variables, newest.variables)
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="^the checkpoint must be best or newest, not 'last'$"):
        load(tmp_path, checkpoint="last")
    averaged = {name.removeprefix("averaged."): array for name, array in best.arrays.items()
                if name.startswith("averaged.")}  # fmt: skip
    assert averaged and all((best.arrays[f"params.{name}"] != averaged[name]).any() for name in averaged)
    again = tiny_run.recording_console()
    assert loop.train(experiment, tmp_path, again) == json.loads((tmp_path / "metrics.json").read_text())
    assert "is finished: 4 steps" in again.file.getvalue() and len(asked) == 6
    assert "raise --train.patience to train longer" in " ".join(again.file.getvalue().split())
    assert inspect(tmp_path).findings == []
