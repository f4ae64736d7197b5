"""Runs: the data set and the directory of a run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
from etils import epath
from quirks import quirk
from saved_runs import INFO, image, repeat, saved_run, write

from mrcnn_jax.config import to_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.presets import get
from mrcnn_jax.run_description import edited_experiment
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.run_lock import claimed_directory, require_run_directory
from mrcnn_jax.training.warm_start import resolve_dataset_fields

# ---- the data set of a run ----


def changed_labels(data):
    write(data, train=[image(1, classes=[1, 1]), image(2)])


def more_images(data):
    write(data, train=[image(number) for number in range(1, 7)])


def other_pixels(data):
    write(data, validation=[image(3, level=100)])


@quirk("images or labels of a set changed under a run", "a warning that names what changed, even if finished")
@pytest.mark.parametrize(
    "change, said",
    [
        (changed_labels, "train: other labels"),
        (more_images, "train: 2 images before, 6 now, 4 objects before, 12 now"),
        (other_pixels, "validation: other images"),
    ],
)
def test_changed_data_set_is_said(tmp_path, change, said):
    experiment = saved_run(tmp_path / "run", write(tmp_path / "data"))
    assert "has changed" not in repeat(experiment, tmp_path / "run")
    change(tmp_path / "data")
    output = repeat(experiment, tmp_path / "run")
    assert f"has changed since {tmp_path / 'run'} was last saved ({said})" in output


@quirk("classes renamed, swapped, added or removed under a run", "refused, with the first difference")
@pytest.mark.parametrize("names", [("cat", "dog"), ("b", "a"), ("a", "b", "c"), ("a",)])
def test_changed_classes_are_refused(tmp_path, names):
    experiment = saved_run(tmp_path / "run", write(tmp_path / "data"))
    info = INFO._replace(category_names=names, category_ids=tuple(range(1, len(names) + 1)))
    images = [image(1, classes=[0, 0])]
    write(tmp_path / "data", images, images, info)
    with pytest.raises(InputError, match=r"was trained with other classes .* \(\w+ in place of \w+"):
        train(experiment, tmp_path / "run", tiny_run.recording_console())


@quirk("the same set as `out`, `out/`, `./out`, an absolute path or a link", "is the same set")
@pytest.mark.parametrize("spelling", ["data/", "./data", "run/../data", "link", "{absolute}"])
def test_other_spellings_of_one_place(tmp_path, monkeypatch, spelling):
    monkeypatch.chdir(tmp_path)
    experiment = saved_run(Path("run"), write(Path("data")))
    assert experiment.data.dataset == "data"
    Path("link").symlink_to("data")
    dataset = spelling.format(absolute=tmp_path / "data")
    experiment = replace(experiment, data=replace(experiment.data, dataset=dataset))
    assert "Warning" not in repeat(experiment, Path("run"))


@quirk("the set of a run moved or copied", "is recognised by its content, with a note")
def test_moved_data_set(tmp_path):
    experiment = saved_run(tmp_path / "run", write(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = replace(experiment, data=replace(experiment.data, dataset=str(tmp_path / "elsewhere")))
    assert f"is the data set that the run knows as {tmp_path / 'data'}" in repeat(moved, tmp_path / "run")
    more_images(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\(data.dataset differs, .*: train: 2 images before, 6"):
        train(moved, tmp_path / "run", tiny_run.recording_console())


# ---- the directory of a run ----


@quirk("a second process in a run directory", "refused with the process and machine that train there")
def test_run_directory_is_locked(tmp_path):
    data = write(tmp_path / "data")
    with claimed_directory(epath.Path(tmp_path / "run")):
        with pytest.raises(InputError, match=rf"run is in use by process {os.getpid()} on .*training there"):
            train(tiny_run.run_experiment(data), tmp_path / "run", tiny_run.recording_console())
    with claimed_directory(epath.Path(tmp_path / "run")):
        pass
    assert not (tmp_path / "run").exists()


@quirk("a killed run (SIGKILL, power failure)", "leaves no lock behind")
def test_lock_does_not_survive_its_process(tmp_path):
    directory = epath.Path(tmp_path)
    hold = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    wait = "print(1, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", f"{hold}; {wait}", str(tmp_path / ".lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(InputError, match="in use by another process"), claimed_directory(directory):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with claimed_directory(directory):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("number", [38, 37, 95])  # ENOSYS, ENOLCK, EOPNOTSUPP
def test_file_systems_without_locks_are_used_without(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    directory = epath.Path(tmp_path)
    with claimed_directory(directory), claimed_directory(directory):
        pass


@quirk("a run directory that is a file, a data set, results without checkpoints, or cannot be written",
       "refused before anything is written")  # fmt: skip
def test_directories_that_hold_something_else(tmp_path):
    data = write(tmp_path / "data")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_text("{}")
    for name in ("alien", "emptied/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "alien/notes.md").write_text("mine")
    (tmp_path / "emptied/metrics.json").write_text("{}")
    (tmp_path / "emptied/experiment.json").write_text("{}")
    reasons = {"alien": "holds notes.md and no run", "emptied": "metrics.json but no checkpoints",
               "file": "is a file", "data": "is a data set", "results": "metrics.json but no checkpoints",
               "file/run": "cannot be written"}  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=f"{name} .*{reason}.*: choose another --directory"):
            train(tiny_run.run_experiment(data), tmp_path / name, tiny_run.recording_console())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_folders_in_which_a_run_may_begin(tmp_path):
    for name in ("new", "empty", "logs", "begun"):
        if name != "new":
            (tmp_path / name).mkdir()
    (tmp_path / "logs/train.log").write_text("of a shell")
    (tmp_path / "logs/.DS_Store").write_text("")
    (tmp_path / "begun/checkpoints").mkdir()
    for file in ("begun/experiment.json", "begun/notes.md"):
        (tmp_path / file).write_text("{}")
    for name in ("new", "empty", "logs", "begun"):
        require_run_directory(epath.Path(tmp_path / name))
    assert not (tmp_path / "new").exists()


@quirk("`train demo` with a directory, or weights to start from, that cannot be used",
       "refused before the data set is drawn")  # fmt: skip
def test_places_are_checked_before_data_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    experiment = get("demo")
    for directory, reason in {"file": "is a file", "file/run": "cannot be written", "": "empty name",
                              "s3://b/x": "is an address"}.items():  # fmt: skip
        with pytest.raises(InputError, match=reason):
            train(experiment, directory, tiny_run.recording_console())
    for origin in ("nosuch", "file"):
        changed = replace(experiment, train=replace(experiment.train, init_from=origin))
        with pytest.raises(InputError, match="holds no checkpoints"):
            train(changed, "run", tiny_run.recording_console())
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@quirk("`experiment.json` of a run edited", "a warning that the file has no effect, and which option has")
@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda values: values["model"]["box"].update(score_threshold=0.9), "in model.box.score_threshold:"),
        (lambda values: values["model"].update(colour=1), "constructor for ModelConfig: colour"),
        (lambda values: values.clear() or values.update(model=[]), "does not describe an experiment"),
    ],
)
def test_edited_experiment_is_said(tmp_path, edit, said):
    experiment = saved_run(tmp_path / "run", write(tmp_path / "data"))
    assert edited_experiment(tmp_path / "run") is None
    file = tmp_path / "run/experiment.json"
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))
    sentence = edited_experiment(tmp_path / "run")
    assert said in sentence and "no effect; give settings as options, such as --" in sentence
    assert "\n" not in sentence and sentence in repeat(experiment, tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"\0\0", b"[" * 100_000, b"\xff\xfe", b"3"])
def test_damaged_experiment_file_stops_nothing(tmp_path, content):
    experiment = saved_run(tmp_path / "run", write(tmp_path / "data"))
    (tmp_path / "run/experiment.json").write_bytes(content)
    assert "is finished" in repeat(experiment, tmp_path / "run")


def test_settings_of_a_run_stopped_before_its_next_checkpoint_are_no_edit(tmp_path):
    saved_run(tmp_path / "run", write(tmp_path / "data"))
    longer = tiny_run.run_experiment(tmp_path / "data", steps=20)
    longer = resolve_dataset_fields(longer, run_setup.open_splits(longer.data)[0])
    (tmp_path / "run/experiment.json").write_text(json.dumps(to_dict(longer)))
    assert edited_experiment(tmp_path / "run", longer) is None is edited_experiment(tmp_path / "run")
    assert "train.steps" in edited_experiment(tmp_path / "run", tiny_run.run_experiment(tmp_path / "data"))
