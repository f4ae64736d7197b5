"""Damaged logs and checkpoints of runs."""

import json
from pathlib import Path

import hypothesis
import pytest
import tiny_run
from etils import epath
from hypothesis import strategies as st
from quirks import quirk
from saved_runs import INFO, METRICS, Started, saved_run, write

from mrcnn_jax.checkpoint import DAMAGED, CheckpointStore
from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import read_weights
from mrcnn_jax.run_description import Description, edited_experiment, parse_description
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.history import read_history, read_metrics
from mrcnn_jax.training.loggers import start_loggers
from mrcnn_jax.training.logging import MetricLogger
from mrcnn_jax.training.loop import train

GOOD = b'{"step": 1, "loss": 2.0}\n'
LINES = {
    "zeros": b"\0" * 40 + b"\n", "cut": b'{"step": 2, "lo\n', "foreign byte": b'{"step": 2, "l\xffss": 1}\n',
    "list": b"[1, 2]\n", "number": b"3\n", "null": b"null\n", "text": b'"step"\n',
    "no step": b'{"loss": 1}\n', "step as text": b'{"step": "2"}\n', "step as fraction": b'{"step": 2.5}\n',
    "loss as text": b'{"step": 2, "loss": "1"}\n', "loss as list": b'{"step": 2, "loss": [1]}\n',
    "two": b'{"step": 2}{"step": 3}\n', "deep": b"[" * 100_000 + b"\n",
    "huge": b'{"step": 2, "loss": ' + b"9" * 400 + b"}\n", "digits": b'{"step": ' + b"9" * 5000 + b"}\n",
}  # fmt: skip


@quirk("damaged lines of `history.jsonl` (zeros after a power failure, cut or odd lines, foreign bytes)",
       "moved to `history.damaged.jsonl`, counted in a warning; the run continues")  # fmt: skip
@pytest.mark.parametrize("line", [pytest.param(line, id=name) for name, line in LINES.items()])
def test_damaged_line_of_the_history(tmp_path, line):
    (tmp_path / "history.jsonl").write_bytes(GOOD + line + GOOD)
    warnings = []
    history = MetricLogger(epath.Path(tmp_path), 5, warn=warnings.append)
    history.log(6, {"loss": 1.0})
    history.plot()
    history.close()
    good = json.loads(GOOD)
    assert history.lines == [good, good, {"step": 6, "loss": 1.0}]
    if line == LINES["zeros"]:
        assert warnings == []
    else:
        assert (tmp_path / "history.damaged.jsonl").read_bytes() == line
        assert len(warnings) == 1 and "1 of 3 lines" in warnings[0] and "the first is line 2" in warnings[0]
    assert len((tmp_path / "history.jsonl").read_bytes().splitlines()) == 3


def test_lines_that_can_be_read_are_kept(tmp_path):
    """Zeros before a line, a byte order mark, other ends of lines, no end, NaN, and another order."""
    texts = [b"\xef\xbb\xbf", b'{"step": 3, "loss": NaN}\r\n', b'\0\0\0{"step": 2}\n', GOOD[:-1]]
    (tmp_path / "history.jsonl").write_bytes(b"".join(texts))
    lines = read_history(epath.Path(tmp_path / "history.jsonl"), pytest.fail)
    assert [line["step"] for line in lines] == [1, 2, 3]


@quirk("logs, curves or pictures that cannot be written or drawn", "a warning; metrics are on disk before")
def test_logs_that_cannot_be_written(tmp_path):
    for name in ("history.jsonl", "metrics.csv", "curves.png", "tensorboard"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("")
    (tmp_path / "tensorboard/mine").unlink()
    (tmp_path / "tensorboard").rmdir()
    (tmp_path / "tensorboard").write_text("a file")
    warnings, loggers = [], start_loggers(Experiment(), epath.Path(tmp_path), 0)
    history = MetricLogger(epath.Path(tmp_path), 0, warn=warnings.append, loggers=loggers)
    history.log(1, {"loss": 1.0})
    history.log_evaluation(1, {"bbox": METRICS["bbox"]})
    history.log_image(1, lambda: 1 / 0, epath.Path(tmp_path / "predictions.png"))
    history.close()
    for name in ("history.jsonl", "metrics.csv", "curves.png", "tensorboard", "predictions.png"):
        assert sum(name in warning for warning in warnings) == 1, name
    assert (tmp_path / "history.damaged.jsonl/mine").exists()


@quirk("an empty or odd `metrics.json` of a finished run", "the run is evaluated again")
@pytest.mark.parametrize("content", ["", "[]", "3", "{", '{"bbox": 3}', '{"bbox": {"AP": "9"}}', "\0" * 9])
def test_damaged_metrics(tmp_path, monkeypatch, content):
    def evaluated(*_):
        raise Started

    experiment = saved_run(tmp_path / "run", write(tmp_path / "data"))
    (tmp_path / "run/metrics.json").write_text(content)
    monkeypatch.setattr(run_setup, "make_train_step", evaluated)
    console = tiny_run.recording_console()
    with pytest.raises(Started):
        train(experiment, tmp_path / "run", console)
    assert "metrics.json is damaged, so the run is evaluated again." in console.file.getvalue()


def about(directory: Path, step: int) -> Path:
    return directory / f"checkpoints/{step}/about/metadata"


def change_about(directory: Path, step: int, change) -> None:
    values = json.loads(about(directory, step).read_text())
    about(directory, step).write_text(json.dumps(change(values) or values))


ODD = {
    "unknown field": lambda values: values["experiment"]["model"].update(colour=1),
    "odd value": lambda values: values["experiment"]["train"].update(steps="many"),
    "no experiment": lambda values: values.pop("experiment") and None,
    "no names": lambda values: values["dataset"].pop("category_names") and None,
    "odd skeleton": lambda values: values["dataset"].update(skeleton=3),
    "odd position": lambda values: values.update(images_seen="x"),
    "odd digests": lambda values: values.update(digests=[1]),
    "list": lambda values: [values],
    "text": lambda values: "experiment",
}


@quirk("a checkpoint whose description has unknown, missing or odd entries",
       "the checkpoint before is used and this one kept aside; without another a sentence names the entry")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in ODD.items()])
def test_odd_description_of_a_checkpoint(tmp_path, change):
    experiment = saved_run(tmp_path, write(tmp_path.with_suffix(".data")), steps=(3, 6))
    change_about(tmp_path, 6, change)
    warnings = []
    with CheckpointStore(tmp_path / "checkpoints", read_only=True) as store:
        assert store.restore_latest(warnings.append).step == 3
    assert len(warnings) == 1 and "6 cannot be read" in warnings[0] and "\n" not in warnings[0]
    change_about(tmp_path, 3, change)
    with pytest.raises(InputError, match="no checkpoint in .* can be read; the newest: .*6 cannot be read"):
        train(experiment, tmp_path, tiny_run.recording_console())
    assert edited_experiment(tmp_path) is None


def test_the_best_checkpoint_of_an_earlier_start_is_not_loaded(tmp_path, capsys):
    """The run goes on with train.keep_best switched off."""
    saved_run(tmp_path / "run", write(tmp_path / "data"), steps=(3, 6))
    (tmp_path / "run/best").mkdir()
    (tmp_path / "run/checkpoints/3").rename(tmp_path / "run/best/3")
    read_weights(tmp_path / "run")
    assert "loading step 3" not in capsys.readouterr().err


def test_unknown_field_of_a_checkpoint_is_named(tmp_path):
    saved_run(tmp_path, write(tmp_path.with_suffix(".data")))
    change_about(tmp_path, 6, ODD["unknown field"])
    with CheckpointStore(tmp_path / "checkpoints", read_only=True) as store:
        with pytest.raises(InputError, match="ModelConfig: colour"):
            store.restore_latest()


def test_unknown_entries_beside_the_experiment_are_ignored(tmp_path):
    saved_run(tmp_path, write(tmp_path.with_suffix(".data")))
    change_about(tmp_path, 6, lambda values: values.update(later=1) or values["dataset"].update(colour=2))
    with CheckpointStore(tmp_path / "checkpoints", read_only=True) as store:
        assert store.restore_latest(pytest.fail).info == INFO


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("taken", ["directory", "file"])
def test_checkpoints_kept_aside_replace_none(tmp_path, taken):
    saved_run(tmp_path, write(tmp_path.with_suffix(".data")), steps=(3, 6))
    if taken == "directory":
        (tmp_path / DAMAGED / "6").mkdir(parents=True)
        (tmp_path / DAMAGED / "6/mine").write_text("earlier")
    else:
        (tmp_path / DAMAGED).write_text("earlier")
    about(tmp_path, 6).unlink()
    with CheckpointStore(tmp_path / "checkpoints") as store:
        assert store.restore_latest().step == 3
    earlier, now = ("6/mine", DAMAGED + "/6_2") if taken == "directory" else ("", DAMAGED + "_2/6")
    assert (tmp_path / DAMAGED / earlier).read_text() == "earlier" and (tmp_path / now).is_dir()


FUZZ = hypothesis.settings(max_examples=150, derandomize=True, database=None, deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@FUZZ
@hypothesis.given(st.lists(st.binary(max_size=30) | JSON.map(json.dumps).map(str.encode), max_size=5))
def test_any_history_is_read(tmp_path_factory, rows):
    file = epath.Path(tmp_path_factory.getbasetemp()) / "any_history.jsonl"
    file.write_bytes(GOOD + b"\n".join(rows) + b"\n" + GOOD)
    lines = read_history(file, lambda message: None)
    assert lines.count(json.loads(GOOD)) >= 2
    file.write_bytes(b"".join(rows))
    read_metrics(file, lambda message: None)


DESCRIPTION = Description(Experiment(), INFO, 8, {"step": 1}).to_json()
PLACES = [
    ("experiment",), ("dataset",), ("images_seen",), ("digests",), ("contents",), ("experiment", "model"),
    ("experiment", "model", "rpn", "anchor_sizes"), ("experiment", "train", "steps"),
    ("dataset", "skeleton"), ("dataset", "category_ids"), ("digests", "step"),
]  # fmt: skip


@FUZZ
@hypothesis.given(st.sampled_from(PLACES), JSON)
def test_any_description_is_read_or_refused(place, value):
    values = json.loads(json.dumps(DESCRIPTION))
    *parents, name = place
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    try:
        parse_description(values, "checkpoint 6")
    except InputError as error:
        assert str(error).startswith("checkpoint 6 ")
