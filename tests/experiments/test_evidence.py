"""Real photos, an ingredient removed at a time: rows, running them, and the section of the page."""

import io
import json
from types import SimpleNamespace

import jax
import pytest
import tiny
from rich.console import Console
from saved_runs import saved_run, write

from experiments import _jobs, evidence
from experiments._evidence_page import evidence_section, write_evidence_plots
from experiments._results import EVIDENCE, same_settings
from experiments.evidence import ROWS, TASKS, Options, experiment_of, name_of
from mrcnn_jax.config import from_dict, to_dict
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import TrainingError
from mrcnn_jax.inference.detector import load
from mrcnn_jax.run_description import differing_fields

REMOVED = {
    "from scratch": {"model.backbone.norm", "model.backbone.pyramid_norm", "model.backbone.freeze_stages",
                     "train.layer_decay", "train.init_from", "train.learning_rate"},
    "no augmentation": {f"data.augment.{name}" for name in (
        "flip", "scale_jitter", "brightness", "contrast", "saturation", "vertical_flip", "quarter_turns",
        "rotation", "hue", "blur", "noise")},
    "no moving average": {"train.ema_decay"},
    "step decay": {"train.schedule"},
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_a_row_does_without_one_ingredient(task):
    complete = to_dict(experiment_of(task, "all"))
    assert complete["model"]["backbone"]["name"] == "resnet50"
    assert ROWS.keys() == {"all", *REMOVED}
    for row, fields in REMOVED.items():
        differing = set(differing_fields(complete, to_dict(experiment_of(task, row)))) - {"name"}
        assert differing and differing <= fields


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that were trained; each gets synthetic files."""
    names = []

    def train(experiment, directory, console, store_programs):
        names.append(experiment.name)
        if "step" in experiment.name:
            raise TrainingError("the loss exploded")
        directory.mkdir(parents=True)
        losses = [{"step": step, "loss": 2.0, "images_per_second": 1.0} for step in (1, 400)]
        lines = [*losses, {"step": 400, "bbox/AP": 21.0}]
        (directory / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
        metrics = {kind: {"AP": 21.0, "AP50": 45.0} for kind in ("bbox", "segm", "keypoints")}
        (directory / "metrics.json").write_text(json.dumps(metrics))
        (directory / "experiment.json").write_text(json.dumps(to_dict(experiment)))

    monkeypatch.setattr(evidence, "train", train)
    return names


def test_rows_run_once_and_make_the_section(trained, tmp_path, capsys):
    rows = ("all", "step decay", "from scratch")
    options = Options("people", rows, "w/backbone", tmp_path / "runs", tmp_path / "results" / "evidence")
    console = Console(file=io.StringIO(), width=1000)
    assert evidence.run(options, console) == ["people, step decay: the loss exploded"]
    assert trained == ["people_all", "people_step_decay", "people_from_scratch"]
    content = json.loads((options.results / "people_all.json").read_text())
    assert content["config"]["train"]["init_from"] == "backbone"
    assert content["command"] == "python -m experiments.evidence people --rows all"
    evidence.run(options, console)
    assert trained[3:] == ["people_step_decay"]
    text = "\n".join(evidence_section(options.results))
    assert "| all | 21.0 | 45.0 | 21.0 | 45.0 | 21.0 | 45.0 | 400 x " in text
    assert "(results/evidence/people.png)" in text and text.count("\n| from scratch |") == 1
    (picture,) = write_evidence_plots(options.results)
    assert read_image(picture).std() > 5
    assert list(evidence_section(tmp_path / "nowhere")) == []
    assert evidence.main(["people", "--rows", "everything"]) == 2
    assert "--rows has 'everything'; choose from 'all'" in capsys.readouterr().err


def test_the_row_without_average_shares_the_training_of_all(tmp_path, monkeypatch):
    options = Options("people", ("all", "no moving average"), "w/backbone", tmp_path / "runs", tmp_path)
    data = write(tmp_path / "data")
    evaluated = []

    def train(experiment, directory, console, store_programs):
        saved_run(directory, data, average_scale=2.0)
        losses = {"step": 6, "loss": 2.0, "images_per_second": 1.0}
        lines = [losses, {"step": 6, "bbox/AP": 21.0}]
        (directory / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def evaluate_split(detector, split):
        evaluated.append(detector)
        return SimpleNamespace(metrics={"bbox": {"AP": 7.0, "AP50": 8.0}})

    monkeypatch.setattr(evidence, "train", train)
    monkeypatch.setattr(_jobs, "evaluate_split", evaluate_split)
    assert evidence.run(options, Console(file=io.StringIO())) == []
    (plain,) = evaluated
    averaged = load(tmp_path / "runs" / "people_all").variables["params"]
    tiny.assert_same(plain.variables["params"], jax.tree.map(lambda leaf: leaf / 2, averaged))
    content = json.loads((tmp_path / "people_no_moving_average.json").read_text())
    assert content["metrics"]["bbox"]["AP"] == 7 and content["config"]["train"]["ema_decay"] == 0
    assert content["experiment"] == "people_no_moving_average"
    assert [line["step"] for line in content["history"]] == [6] and "loss" in content["history"][0]


def test_published_results_have_todays_settings():
    for file in EVIDENCE.glob("*.json"):
        content = json.loads(file.read_text())
        experiment = experiment_of(content["task"], content["row"])
        assert file.stem == name_of(content["task"], content["row"]) and same_settings(content, experiment)
        assert from_dict(content["config"]).train.steps == content["steps"]
