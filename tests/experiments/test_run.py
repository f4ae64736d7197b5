"""Running a table: jobs are skipped, ordered and resumed; the costs of systems are compiled once."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from experiments import _jobs, costs, report, run
from experiments._results import COSTS, load_seeds, same_settings, settings_of
from experiments.recipes import FACTS, recipes_section
from experiments.rows import all_systems
from experiments.run import Options
from experiments.scales import SCALES, experiment_of
from mrcnn_jax.config import from_dict, to_dict, with_changes
from mrcnn_jax.errors import TrainingError
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.structures import DatasetInfo

ROI_POOL_RUNS = ["rpn_r50_c5_0", "r50_c5_roipool_0", "r50_c5_0"]


@pytest.fixture
def options(tmp_path) -> Options:
    return Options("table2d", directory=tmp_path / "runs", results=tmp_path / "results")


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Names of the run directories that were trained; each gets synthetic files."""
    calls = []

    def train(experiment, directory, console):
        calls.append(directory.name)
        if "fails" in str(directory):
            raise TrainingError("the loss exploded")
        directory.mkdir(parents=True, exist_ok=True)
        line = {"step": 600, "loss": 1.0, "images_per_second": 10.0}
        (directory / "metrics.json").write_text(json.dumps({"segm": {"AP": 30.0 + experiment.train.seed}}))
        (directory / "experiment.json").write_text(json.dumps(to_dict(experiment)))
        (directory / "history.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(run, "train", train)
    return calls


def console() -> Console:
    return Console(file=io.StringIO(), width=10_000)


def test_each_system_runs_once_after_its_prerequisites(options, trained):
    assert run.run(replace(options, seeds=2), console()) == []
    assert trained == [*ROI_POOL_RUNS, "rpn_r50_c5_1", "r50_c5_roipool_1", "r50_c5_1"]
    found = load_seeds("shapes", "r50_c5", options.results)
    assert {seed: result["metrics"]["segm"]["AP"] for seed, result in found.items()} == {0: 30.0, 1: 31.0}
    assert (found[0]["system"], found[0]["recipe"], found[1]["seed"]) == ("r50_c5", "paper", 1)
    assert from_dict(found[0]["experiment_of_one_device"]).train.images_per_device == 8
    for experiment in (found[0]["config"], found[0]["experiment_of_one_device"]):
        assert experiment["train"]["init_from"] == "rpn_r50_c5_0"
        assert experiment["model"]["rpn"]["proposals_from"] == "rpn_r50_c5_0"

    trained.clear()
    printed = console()
    assert run.run(options, printed) == [] and trained == []
    assert "table2d, RoIPool, seed 0: result in" in printed.file.getvalue()
    file = options.results / "shapes" / "r50_c5_0.json"
    file.unlink()
    assert run.run(options, console()) == [] and file.exists() and trained == ["rpn_r50_c5_0", "r50_c5_0"]
    assert "seconds" in load_seeds("shapes", "rpn_r50_c5", options.results)[0]  # of its first run


def test_backbones_initialise_what_has_no_weights_of_the_tables(options):
    settings = replace(options, table="table7", scale="paper", backbones=Path("weights"))
    pending = run.pending_jobs(settings, run.requested_jobs(settings))
    init_from = {job.system.name: job.experiment.train.init_from for job in pending}
    assert init_from.pop("cityscapes_coco").endswith("r50_fpn_0")
    assert init_from == dict.fromkeys(init_from, "weights/resnet50") and len(init_from) == 4
    rows = ("Mask R-CNN, X101-FPN",)
    settings = replace(options, table="table1", rows=rows, scale="paper", backbones=Path("w"))
    (job,) = run.requested_jobs(settings)
    assert job.experiment.train.init_from == "w/resnext101"


def test_result_with_other_settings_is_run_again(options, trained):
    run.run(replace(options, rows=("RoIAlign",)), console())
    file = options.results / "shapes" / "r50_c5_0.json"
    content = json.loads(file.read_text())
    experiment = from_dict(content["experiment_of_one_device"])
    same = {"train.log_every": 5, "model.rpn.proposals_from": "elsewhere", "train.init_from": "elsewhere"}
    assert same_settings(content, with_changes(experiment, same))
    assert not same_settings(content, with_changes(experiment, {"train.steps": 5}))
    assert not same_settings(content, with_changes(experiment, {"model.rpn.proposals_from": ""}))
    content["experiment_of_one_device"]["train"]["learning_rate"] = 0.1
    file.write_text(json.dumps(content))
    trained.clear()
    printed = console()
    run.run(replace(options, plan=True), printed)
    assert trained == [] and "RoIAlign, seed 0: to be run" in printed.file.getvalue()
    run.run(options, console())
    assert trained == ROI_POOL_RUNS


def test_row_with_test_time_augmentation_evaluates_the_run_of_another(options, trained, monkeypatch):
    seen = []

    def load(directory):
        experiment = from_dict(json.loads((directory / "experiment.json").read_text()))
        return Detector(experiment, DatasetInfo("puppets", (1,), ("puppet",)), {})

    def evaluate_split(detector, split):
        seen.append((detector.experiment.evaluation.tta_scales, detector.experiment.evaluation.tta_flip))
        return SimpleNamespace(metrics={"keypoints": {"AP": 44.0}})

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(_jobs, "open_split", lambda data, split: None)
    monkeypatch.setattr(_jobs, "evaluate_split", evaluate_split)
    options = replace(options, table="table9", rows=("+ test-time augmentation",))
    assert run.run(options, console()) == [] and trained == ["keypoints_x101_0"]
    assert seen == [(tuple(range(64, 193, 16)), True)]  # 400 to 1200 of 800 pixels, at 128
    (result,) = load_seeds("shapes", "keypoints_x101_tta", options.results).values()
    assert result["metrics"] == {"keypoints": {"AP": 44.0}} and result["steps"] == 600
    assert result["experiment"] == "keypoints_x101_tta" and result["config"]["evaluation"]["tta_flip"]
    experiment = from_dict(result["experiment_of_one_device"])
    assert same_settings(result, experiment)
    assert not same_settings(result, with_changes(experiment, {"evaluation.tta_flip": False}))
    assert run.run(options, console()) == [] and len(seen) == 1  # done


def test_rows_whose_prerequisite_failed_are_not_started(options, trained, tmp_path):
    failures = run.run(replace(options, directory=tmp_path / "fails"), console())
    assert trained == ["rpn_r50_c5_0"] and "the loss exploded" in failures[0]
    assert len(failures) == 3
    assert all("rpn_r50_c5, which must be trained before, failed" in failure for failure in failures[1:])
    assert not options.results.exists()


@pytest.mark.parametrize("arguments, message", [
    (("table3", "--rows", "Faster R-CNN+++, R101-C4"),
     r"row 'Faster R-CNN\+\+\+, R101-C4' of table3 is quoted from the paper \(not Mask R-CNN\); choose"),
    (("table2d", "--rows", "RoiAlign"),
     "row 'RoiAlign' of table2d does not exist; choose from 'RoIPool', 'RoIAlign'"),
    (("table2d", "--seeds", "0"), "--seeds is 0, but must be 1 or more"),
    (("table7",), "scale shapes has no data set in place of data/cityscapes"),
])  # fmt: skip
def test_invalid_options_are_refused(arguments, message, trained, capsys, tmp_path):
    assert run.main([*arguments, "--directory", str(tmp_path)]) == 2 and trained == []
    assert re.search(message, capsys.readouterr().err)


def test_results_of_ones_own_are_rendered_in_their_folder(options, trained, capsys):
    run.run(options, console())
    printed = console()
    run.summarise(options, printed)
    assert "table2d: 0 of 1 differences have the sign of the paper's." in printed.file.getvalue()
    assert f"python -m experiments.report --results {options.results}" in printed.file.getvalue()
    readme = report.README.read_text()
    assert report.main(["--results", str(options.results)]) == 0
    text = (options.results / "RESULTS.md").read_text()
    assert "| RoIAlign | RoIPool | mask AP | +7.3 | +0.0 |" in text and "## Single runs" not in text
    assert "](shapes/table2d.png)" in text and (options.results / "shapes" / "table2d.png").exists()
    assert report.README.read_text() == readme
    capsys.readouterr()
    assert report.main(["--results", str(options.results / "nowhere")]) == 2
    assert "nowhere holds no results of two rows" in capsys.readouterr().err


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """Names of the systems that were compiled; figures are synthetic, and ResNeXt does not fit."""
    names = []

    def compile_step(experiment, topology, effort):
        names.append(experiment.name)
        train = experiment.train
        row = {
            "topology": topology, "chips": 8, "images_per_chip": train.images_per_device, "accumulate": 1,
            "dtype": train.dtype, "effort": effort, "product_flops": 197e9, "experiment": experiment.name,
        }  # fmt: skip
        if "x101" in experiment.name:
            return row | {"unavailable": "Ran out of memory"}
        memory = dict.fromkeys(("output_bytes", "alias_bytes", "code_bytes"), 0)
        memory |= {"argument_bytes": 2**30, "temp_bytes": 2**30}
        return row | memory | {"cycles": None, "all_reduces": [[1, 4]]}

    monkeypatch.setattr(costs, "compile_step", compile_step)
    monkeypatch.setattr(costs, "topology", lambda name: range(8))
    monkeypatch.setattr(costs, "versions", lambda *packages: {})
    return names


def test_each_system_is_compiled_once(compiled, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "costs.json"), "--systems", "r50_fpn", "x101_fpn"]
    assert costs.main(arguments) == 1 and compiled == ["r50_fpn", "x101_fpn"]
    expected = "1 of 2: r50_fpn: 2.00 GiB per chip, 13.75 free; at least 1.0 ms per step"
    assert expected in capsys.readouterr().out
    assert costs.main([*arguments, "person_boxes"]) == 0
    assert compiled == ["r50_fpn", "x101_fpn", "person_boxes"]
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert [row["system"] for row in rows] == [name for name in all_systems() if name in compiled]
    text = report.page(tmp_path)
    assert "| `r50_fpn` | 2 | 0.20 | 2.0 | 13.8 | 1.0 | 160,000 | 0 | 2 |" in text
    assert "| `x101_fpn` | 1 | 0.20 | Ran out of memory | - |" in text
    assert costs.main(["--systems", "r51"]) == 2
    assert "--systems has r51; choose from rpn_" in capsys.readouterr().err


def test_recipes_are_compiled_once_a_model_for_the_chips_of_their_batch(compiled, tmp_path):
    file = tmp_path / "costs.json"
    names = ["mask_rcnn_r50_fpn_1x", "mask_rcnn_r50_fpn_100ep"]
    for _ in range(2):
        assert costs.main(["--recipes", "--out", str(file), "--systems", *names]) == 0
    assert compiled == names
    slices = {row["system"]: row["topology"] for row in json.loads(file.read_text())["rows"]}
    assert slices == {"mask_rcnn_r50_fpn_1x": "v5e:2x4", "mask_rcnn_r50_fpn_100ep": "v5e:4x8"}
    text = "\n".join(recipes_section(file))
    assert "90,000 x 16 | 8 | 2.0 | 1.0 | 0 | 1 |" in text
    assert "270,000 x 16 | 8 | 2.0 | 1.0 | 1 | 3 |" in text
    assert text.count("not compiled yet") == len(FACTS) - 5  # 1x and 3x; 100, 200 and 400 epochs


def test_published_costs_are_of_todays_systems():
    rows, systems = json.loads(COSTS.read_text())["rows"], all_systems(of_paper=True)
    trained = [name for name, system in systems.items() if not system.evaluates]
    assert [row["system"] for row in rows] == trained  # each training step was compiled at full size
    for row in rows:
        experiment = experiment_of(systems[row["system"]], SCALES["paper"])
        assert settings_of(row["settings"]) == settings_of(to_dict(experiment))
