"""Pages of results: made from result files alone, and current; published results say how they were made."""

import json
import shlex

import jax
import pytest

from experiments import compare_runs, report
from experiments._plots import write_plots
from experiments._results import RESULTS, TABLES_FOLDER, load_runs, same_settings
from experiments._runs_table import update_readme
from experiments._tables_page import plot_file, shown_scales
from experiments.export_result import result_of
from experiments.rows import TABLES, all_systems
from experiments.scales import SCALES, experiment_of
from mrcnn_jax.cli import main as cli
from mrcnn_jax.config import from_dict
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.evaluate import KINDS

TABLE_RESULTS = sorted(TABLES_FOLDER.glob("*/*.json"))


def write_result(folder, system, seed, about=None, **metrics):
    file = folder / "shapes" / f"{system}_{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"metrics": metrics} | (about or {})))


def test_page_has_differences_deviations_and_missing_runs(tmp_path):
    def both(ap, ap75, box):
        masks = {"AP": ap, "AP50": 60.0, "AP75": ap75}
        return {"segm": masks, "bbox": {"AP": box, "AP50": 70.0, "AP75": 50.0}}

    for seed, (align, pool) in enumerate([(40.0, 30.0), (41.0, 33.0), (42.0, 33.0)]):
        write_result(tmp_path, "r50_c5", seed, **both(align, 40.0, 45.0))
        write_result(tmp_path, "r50_c5_roipool", seed, **both(pool, 30.0, 35.0))
    write_result(tmp_path, "r50_c4", 0, segm={"AP": 41.5, "AP50": 60.0, "AP75": 40.0})
    write_result(tmp_path, "r101_c4", 0, segm={"AP": 40.5, "AP50": 60.0, "AP75": 40.0})
    text = report.page(tmp_path)
    assert "3 of 3 differences have the sign of the paper's" in text
    assert "| RoIAlign | RoIPool | mask AP | +7.3 | +9.0 ± 1.0 |" in text
    assert "| RoIAlign | RoIPool | mask AP75 | +10.5 | +10.0 ± 0.0 |" in text
    row = "| RoIAlign | 30.9 | 51.8 | 32.1 | 41.0 ± 1.0 | 60.0 ± 0.0 | 40.0 ± 0.0 | 3 | `r50_c5` |"
    assert row in text
    assert "| `r50_c5` | `mask_rcnn_r50_c5 --model.box.nms-iou 0.3` | `rpn_r50_c5` |" in text
    assert "| `rpn_r50_c5` | `mask_rcnn_r50_c5 --model.tasks` | - |" in text
    assert "--model.mask.class-agnostic`" in text and "--model.backbone.no-non-local`" in text
    # a scale with two of a table's rows shows these; one with a single row nothing
    assert "0 of 1 differences have the sign" in text
    assert "| R101-C4 | 32.7 | 54.2 | 34.3 | 40.5 | 60.0 | 40.0 |" in text
    assert "| sigmoid | 30.3 | 51.2 | 31.5 | `r50_c4` |" in text
    assert "Not run yet: `python -m experiments.run table6 --scale paper`." in text
    assert "paper only: not Mask R-CNN" in text and "the figures are unverified" in text
    assert "of one seed took" not in text
    about = {"seconds": 400, "hardware": "1 x cpu (cpu), 2 CPU cores"}
    for system in ("rpn_r50_c5", "r50_c5", "r50_c5_roipool"):
        write_result(tmp_path, system, 0, about, **both(40.0, 40.0, 45.0))
    assert "The 3 runs of one seed took 20 minutes on 2 CPU cores." in report.page(tmp_path)
    plots = write_plots(tmp_path)
    assert {file.name for file in plots} == {"table2a.png", "table2d.png"}
    assert all(f"](shapes/{file.name})" in text for file in plots)


def test_published_pages_are_current():
    assert (RESULTS.parent / "RESULTS.md").read_text() == report.page()
    readme = report.README.read_text()
    assert update_readme(readme) == readme
    shown = {plot_file(table, scale) for table in TABLES.values() for scale in shown_scales(table)}
    assert set(TABLES_FOLDER.glob("*/*.png")) == shown
    with pytest.raises(InputError, match="results:begin"):
        update_readme("no markers")


def test_published_table_results_have_todays_settings():
    systems = all_systems()
    assert len(TABLE_RESULTS) == 53
    for file in TABLE_RESULTS:
        content = json.loads(file.read_text())
        experiment = experiment_of(systems[content["system"]], SCALES[content["scale"]], content["seed"])
        assert same_settings(content, experiment), file
        table, *words = content["command"].removeprefix("python -m experiments.run ").split()
        assert table in TABLES and words[:2] == ["--scale", content["scale"]]


@pytest.mark.parametrize("name", load_runs())
def test_published_run_has_settings_metrics_and_a_valid_command(name, monkeypatch, tmp_path):
    content = load_runs()[name]
    config = from_dict(content["config"], name)
    assert config.name == content["experiment"] and content["steps"] == config.train.steps
    numbers = {kind: len(figures) for kind, figures in content["metrics"].items()}
    assert numbers.items() <= {"bbox": 12, "segm": 12, "keypoints": 10}.items()
    assert {KINDS[task] for task in config.model.tasks} == set(content["metrics"])
    command = "mrcnn train demo" if content["command"] == "make demo" else content["command"]
    command = command.rpartition("&& ")[2]
    assert command.startswith("mrcnn train ")
    started = []
    monkeypatch.chdir(tmp_path)

    def train(experiment, *_, **__):
        started.append(experiment)

    monkeypatch.setattr("mrcnn_jax.training.loop.train", train)
    monkeypatch.setattr("mrcnn_jax.distributed.initialize", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert cli.main(shlex.split(command)[1:]) == 0
    (experiment,) = started
    assert (experiment.train.steps, experiment.data.dataset) == (config.train.steps, config.data.dataset)
    assert experiment.model.pool == config.model.pool
    assert experiment.model.backbone.width == config.model.backbone.width


def test_runs_are_plotted_side_by_side(tmp_path, capsys):
    assert compare_runs.main([str(tmp_path / "two.png"), "nuclei_wide", "nuclei_wide_imagenet"]) == 0
    assert read_image(tmp_path / "two.png").std() > 5
    assert compare_runs.main([str(tmp_path / "none.png"), "nuclei_wide", "nowhere"]) == 2
    error = capsys.readouterr().err
    assert "nowhere.json holds no history of a run; choose from" in error and "nuclei_wide" in error
    assert not (tmp_path / "none.png").exists()


def test_imagenet_backbone_learns_nuclei_faster():
    scratch, imagenet = (
        {line["step"]: line["segm/AP"] for line in history if "segm/AP" in line}
        for history in compare_runs.load_histories(("nuclei_wide", "nuclei_wide_imagenet")).values()
    )
    assert scratch.keys() == imagenet.keys() == {100, 200, 300, 400, 500}
    assert all(imagenet[step] > scratch[step] for step in scratch)


def test_training_seconds_follow_from_images_per_second(tmp_path):
    config = {"name": "x", "train": {"images_per_device": 2}}
    lines = [
        {"step": 1, "loss": 1.0, "images_per_second": 0.2},
        {"step": 11, "loss": 1.0, "images_per_second": 4.0},
        {"step": 11, "segm/AP": 1.0},
    ]
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "experiment.json").write_text(json.dumps(config))
    (tmp_path / "history.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images = 2 * jax.device_count()
    assert result_of(tmp_path, "mrcnn train x")["training_seconds"] == round(images / 0.2 + 10 * images / 4.0)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"is not a finished run: .*metrics.json is missing"):
        result_of(tmp_path, "mrcnn train x")
