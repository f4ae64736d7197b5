"""The paper's tables: its figures, rows that build at every scale, runs that are skipped or gone on with, and a page made of results alone."""

import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import GOLDEN
from rich.console import Console

from experiments import costs as table_costs
from experiments import page, report, run
from experiments.results_io import COSTS, FOLDER, measured, same_settings, settings_of
from experiments.rows import TABLES, systems
from experiments.run import Options
from experiments.scales import CITYSCAPES, PERSONS, SCALES, experiment_of, fit_to_devices
from mrcnn_jax import presets
from mrcnn_jax.config import PoolConfig, RoIConfig, RPNConfig, from_dict, to_dict, with_changes
from mrcnn_jax.errors import InputError, TrainingError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise

SYSTEMS = systems()
SHAPES = SCALES["shapes"]


def runs_at(scale) -> list[str]:
    return [name for name, system in SYSTEMS.items() if presets.get(system.base).data.dataset in SCALES[scale].data]


# ---- what the paper reports ----


def test_every_row_has_the_papers_figures():
    """golden/paper_figures.json: all figures in the order in which the tables are printed."""
    printed = json.loads((GOLDEN / "paper_figures.json").read_text())
    assert list(TABLES) == list(printed)
    for key, table in TABLES.items():
        assert [row.name for row in table.rows] == list(table.paper["rows"])
        assert [figure for row in table.paper["rows"].values() for kind in row.values() for figure in kind.values()] == printed[key]
    assert [key for key, table in TABLES.items() if not table.paper["verified"]] == ["table8", "table9"]


def test_what_a_claim_rests_on_holds_in_the_paper():
    for table in TABLES.values():
        assert table.compare
        for better, other, kind, name in table.compare:
            assert table.paper["rows"][better][kind][name] > table.paper["rows"][other][kind][name]
            assert {better, other} <= table.systems().keys()


# ---- what is trained ----


def test_systems_have_one_name_each():
    for table in TABLES.values():
        for system in table.systems().values():
            assert all(SYSTEMS[other.name] == other for other in (*system.needs(), system))


@cache
def shapes_of_parameters(model):
    variables = jax.eval_shape(lambda key: initialise(MaskRCNN(model), key), jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf.shape, variables["params"])


@pytest.mark.parametrize("scale", SCALES)
def test_every_row_builds(scale):
    """The model of every system that the scale has data for, by the shapes of its arrays; a proposer has the layers of its own run."""
    assert len(runs_at(scale)) == {"paper": 39, "shapes": 36, "shapes-long": 36, "nuclei": 27, "coco-small": 36}[scale]
    shapes = {}
    for name in runs_at(scale):
        model = experiment_of(SYSTEMS[name], SCALES[scale]).model
        model = replace(model, num_classes=model.num_classes or 3, keypoint=replace(model.keypoint, num_keypoints=7, classes=(0,)))
        # what does not tell on the arrays, so that rows and scales share what was found
        rpn = replace(RPNConfig(), training=model.rpn.training)
        heads = {part: getattr(model, part) for part in ("box", "mask", "keypoint")}
        model = replace(model, **{part: replace(head, pool=PoolConfig(size=head.pool.size)) for part, head in heads.items()})
        alike = replace(model, rpn=rpn, roi=RoIConfig(levels=model.roi.levels), box=replace(model.box, candidates=9, detections=9, nms_iou=0.5))
        shapes[name] = shapes_of_parameters(alike)
    for name in runs_at(scale):
        if rpn := SYSTEMS[name].rpn:
            assert experiment_of(SYSTEMS[name], SCALES[scale]).model.rpn.training == "separate"
            proposer = shapes[name]["proposer"]
            assert {part: shapes[rpn.name][part] for part in proposer} == proposer


def test_a_scale_without_the_data_says_so():
    with pytest.raises(InputError, match=f"cityscapes is trained on {CITYSCAPES}, for which scale shapes has nothing"):
        experiment_of(SYSTEMS["cityscapes"], SHAPES)
    with pytest.raises(InputError, match=f"trained on {PERSONS}, for which scale nuclei"):
        experiment_of(SYSTEMS["person_masks"], SCALES["nuclei"])


@pytest.mark.parametrize("table", [table for table in TABLES.values() if table.key.startswith("table2") or table.key == "agnostic"], ids=lambda table: table.key)
def test_the_rows_of_an_ablation_differ_in_what_it_is_about(table):
    """At a small scale as at the paper's: images, data, schedule, seed are those of all rows."""
    about = {"table2a": {"backbone", "roi", "box", "mask", "keypoint", "rpn"}, "table2e": {"mask"}, "table2b": {"mask"}, "agnostic": {"mask"}}
    rows = {scale: [to_dict(experiment_of(system, SCALES[scale])) for system in table.systems().values()] for scale in ("paper", "shapes")}
    for ours in rows.values():
        first = ours[0]
        for other in ours[1:]:
            assert other["data"] == first["data"] and other["evaluation"] == first["evaluation"]
            own = ("rpn_from", "weights_from", "images_per_device") if table.key == "table2a" else ()  # ResNeXt has one image a device
            assert {name for name in first["train"] if first["train"][name] != other["train"][name]} <= set(own)
            differ = {part for part in first["model"] if first["model"][part] != other["model"][part]}
            assert differ and differ <= about.get(table.key, {"box", "mask", "keypoint"})


def test_shared_layers_start_alike():
    def variables(name):
        model = experiment_of(SYSTEMS[name], SHAPES).model
        return initialise(MaskRCNN(replace(model, num_classes=3, rpn=replace(model.rpn, training="joint"))), jax.random.key(0))["params"]

    fcn, mlp, softmax = map(variables, ("r50_fpn", "r50_fpn_mlp2", "r50_c4_softmax"))
    assert fcn.keys() == mlp.keys()
    for part in fcn.keys() - {"mask"}:
        jax.tree.map(np.testing.assert_array_equal, fcn[part], mlp[part])
    stem = next(iter(fcn["backbone"]))
    jax.tree.map(np.testing.assert_array_equal, fcn["backbone"][stem], softmax["backbone"][stem])


def test_on_more_devices_there_are_as_many_images_seen():
    one = experiment_of(SYSTEMS["x101_fpn"], SCALES["paper"])
    assert (one.train.images_per_device, one.train.accumulate, one.train.steps) == (8, 8, 160_000)
    for devices, images, parts, steps in ((1, 8, 8, 160_000), (4, 2, 2, 160_000), (8, 1, 1, 160_000), (16, 1, 1, 80_000), (3, 2, 2, 213_333)):
        train = fit_to_devices(one, devices).train
        assert (train.images_per_device, train.accumulate, train.steps) == (images, parts, steps)
        assert train.decay_steps == (round(steps * 0.75),)
    assert fit_to_devices(experiment_of(SYSTEMS["r50_fpn"], SHAPES), 2).train.images_per_device == 4


# ---- running ----


@pytest.fixture
def options(tmp_path) -> Options:
    return Options("table2d", directory=tmp_path / "runs", results=tmp_path / "results")


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """What was trained, by directory; a run leaves made-up files."""
    calls = []

    def train(experiment, directory, console):
        calls.append(directory.name)
        if "fails" in str(directory):
            raise TrainingError("the loss exploded")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "metrics.json").write_text(json.dumps({"segm": {"AP": 30.0 + experiment.train.seed}}))
        (directory / "experiment.json").write_text(json.dumps(to_dict(experiment)))
        (directory / "history.jsonl").write_text(json.dumps({"step": 600, "loss": 1.0, "images_per_second": 10.0}) + "\n")

    monkeypatch.setattr(run, "train", train)
    return calls


def console() -> Console:
    return Console(file=io.StringIO(), width=10_000)


def test_rows_are_run_once_each_after_what_they_need(options, trained):
    assert run.run(replace(options, seeds=2), console()) == []
    assert trained == ["rpn_r50_c5_0", "r50_c5_roipool_0", "r50_c5_0", "rpn_r50_c5_1", "r50_c5_roipool_1", "r50_c5_1"]
    found = measured("shapes", "r50_c5", options.results)
    assert {seed: result["metrics"]["segm"]["AP"] for seed, result in found.items()} == {0: 30.0, 1: 31.0}
    assert found[0]["system"] == "r50_c5" and found[0]["recipe"] == "paper" and found[1]["seed"] == 1
    assert from_dict(found[0]["experiment_of_one_device"]).train.images_per_device == 8
    assert {found[0][of]["train"]["rpn_from"] for of in ("config", "experiment_of_one_device")} == {"rpn_r50_c5_0"}
    del trained[:]
    said = console()
    assert run.run(options, said) == [] and trained == []
    assert "table2d, RoIPool, seed 0: is in" in said.file.getvalue()
    file = options.results / "shapes" / "r50_c5_0.json"
    file.unlink()
    assert run.run(options, console()) == [] and file.exists() and trained == ["rpn_r50_c5_0", "r50_c5_0"]
    assert "seconds" in measured("shapes", "rpn_r50_c5", options.results)[0]  # what was only needed keeps its result


def test_a_result_of_other_settings_does_not_count(options, trained):
    run.run(replace(options, rows=("RoIAlign",)), console())
    file = options.results / "shapes" / "r50_c5_0.json"
    content = json.loads(file.read_text())
    experiment = from_dict(content["experiment_of_one_device"])
    assert same_settings(content, with_changes(experiment, {"train.log_every": 5, "train.rpn_from": "elsewhere"}))
    assert not same_settings(content, with_changes(experiment, {"train.steps": 5}))
    content["experiment_of_one_device"]["train"]["learning_rate"] = 0.1
    file.write_text(json.dumps(content))
    del trained[:]
    said = console()
    run.run(replace(options, plan=True), said)
    assert trained == [] and "RoIAlign, seed 0: to be run" in said.file.getvalue()
    run.run(options, console())
    assert trained == ["rpn_r50_c5_0", "r50_c5_roipool_0", "r50_c5_0"]


def test_what_needs_a_failed_run_is_not_begun(options, trained, tmp_path):
    failed = run.run(replace(options, directory=tmp_path / "fails"), console())
    assert trained == ["rpn_r50_c5_0"] and "the loss exploded" in failed[0]
    assert len(failed) == 3 and all("it needs rpn_r50_c5, which failed" in failure for failure in failed[1:])
    assert not options.results.exists()


@pytest.mark.parametrize("arguments, message", [
    (("table1", "--rows", "MNC, R101-C4"), r"row 'MNC, R101-C4' of table1 is only reported \(not Mask R-CNN\); choose from 'Mask R-CNN, R101-C4', "),
    (("table2d", "--rows", "RoiAlign"), "row 'RoiAlign' of table2d does not exist; choose from 'RoIPool', 'RoIAlign'"),
    (("table2d", "--seeds", "0"), "--seeds is 0, but must be 1 or more"),
    (("table7",), "cityscapes is trained on data/cityscapes, for which scale shapes has nothing"),
])  # fmt: skip
def test_what_cannot_be_run_is_said(arguments, message, trained, capsys, tmp_path):
    assert run.main([*arguments, "--directory", str(tmp_path)]) == 2 and trained == []
    assert re.search(message, capsys.readouterr().err)


# ---- costs ----


@pytest.fixture
def compiler(monkeypatch) -> list[str]:
    """What was compiled, by name; the figures are made up, and ResNeXt does not fit."""
    compiled = []

    def compile_step(experiment, topology, effort):
        compiled.append(experiment.name)
        config = experiment.train
        row = {"topology": topology, "chips": 8, "images_per_chip": config.images_per_device, "accumulate": 1, "dtype": config.dtype, "effort": effort,
               "product_flops": 197e9, "experiment": experiment.name}  # fmt: skip
        if "x101" in experiment.name:
            return row | {"unavailable": "Ran out of memory", "missing_bytes": 5}, ""
        return row | {"argument_bytes": 2**30, "output_bytes": 0, "alias_bytes": 0, "temp_bytes": 2**30, "code_bytes": 0, "cycles": None, "all_reduces": [[1, 4]]}, "text"

    monkeypatch.setattr(table_costs, "compile_step", compile_step)
    monkeypatch.setattr(table_costs, "topology", lambda name: range(8))
    monkeypatch.setattr(table_costs, "versions", lambda *packages: {})
    return compiled


def test_costs_are_added_up_once(compiler, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "costs.json"), "--systems", "r50_fpn", "x101_fpn"]
    assert table_costs.main(arguments) == 1 and compiler == ["r50_fpn", "x101_fpn"]
    assert "1 of 2: r50_fpn: 2.00 GiB of a chip, 13.75 free; at least 1.0 ms a step" in capsys.readouterr().out
    assert table_costs.main([*arguments, "person_boxes"]) == 0 and compiler == ["r50_fpn", "x101_fpn", "person_boxes"]
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert [row["system"] for row in rows] == [name for name in systems() if name in compiler]
    text = page.page(tmp_path)
    assert "| `r50_fpn` | 2 | 0.20 | 2.0 | 13.8 | 1.0 | 160,000 | 0 | 2 |" in text and "| `x101_fpn` | 1 | 0.20 | Ran out of memory | - |" in text
    assert table_costs.main(["--systems", "r51"]) == 2 and "--systems has r51; choose from rpn_" in capsys.readouterr().err


def test_the_published_costs_are_of_these_systems():
    rows = json.loads(COSTS.read_text())["rows"]
    assert [row["system"] for row in rows] == list(SYSTEMS)  # so every train step has been compiled at full size
    for row in rows:
        assert row["settings"] == settings_of(to_dict(experiment_of(SYSTEMS[row["system"]], SCALES["paper"])))


# ---- the page ----


def write(folder, system, seed, about=None, **metrics):
    file = folder / "shapes" / f"{system}_{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"metrics": metrics} | (about or {})))


def test_the_page_has_means_deviations_and_what_was_not_run(tmp_path):
    for seed, (align, pool) in enumerate([(40.0, 30.0), (41.0, 33.0), (42.0, 33.0)]):
        write(tmp_path, "r50_c5", seed, segm={"AP": align, "AP50": 60.0, "AP75": 40.0}, bbox={"AP": 45.0, "AP50": 70.0, "AP75": 50.0})
        write(tmp_path, "r50_c5_roipool", seed, segm={"AP": pool, "AP50": 60.0, "AP75": 30.0}, bbox={"AP": 35.0, "AP50": 70.0, "AP75": 40.0})
    write(tmp_path, "r50_c4", 0, segm={"AP": 41.5, "AP50": 60.0, "AP75": 40.0})
    text = page.page(tmp_path)
    assert "3 of 3 differences in the paper's direction: RoIAlign against RoIPool: +9.0 ± 1.0 mask AP (paper +7.3); RoIAlign against RoIPool: +10.0 ± 0.0 mask AP75 (paper +10.5)" in text
    assert "| RoIAlign | 30.9 | 51.8 | 32.1 | 41.0 ± 1.0 (+10.1) | 60.0 ± 0.0 (+8.2) | 40.0 ± 0.0 (+7.9) | shapes 3 | `r50_c5` |" in text
    assert "- `r50_c5`: `mask_rcnn_r50_c5 --model.box.nms-iou 0.3`, after `rpn_r50_c5`" in text
    assert "| softmax | 24.8 | 44.1 | 25.1 | not run | not run | not run | shapes 0 |" in text and "| sigmoid | 30.3 | 51.2 | 31.5 | 41.5 (+11.2) | 60.0 (+8.8) | 40.0 (+8.5) | shapes 1 |" in text
    assert "Not run at any scale: `python -m experiments.run table6" in text and "reported only: not Mask R-CNN" in text
    assert "the figures are unverified" in text and "All of one seed" not in text
    for system in ("rpn_r50_c5", "r50_c5", "r50_c5_roipool"):
        write(tmp_path, system, 0, {"seconds": 400, "hardware": "1 x cpu"}, segm={"AP": 40.0, "AP50": 60.0, "AP75": 40.0}, bbox={"AP": 45.0, "AP50": 70.0, "AP75": 50.0})
    assert " All of one seed, 3 runs, took 20 minutes on 1 x cpu." in page.page(tmp_path)
    drawn = page.draw(tmp_path)
    assert {file.name for file in drawn} == {"table2a.png", "table2b.png", "agnostic.png", "table2c.png", "table2d.png"}
    assert all(f"](shapes/{file.name})" in text for file in drawn)


def test_a_page_of_ones_own_runs_is_beside_them(options, trained, capsys):
    run.run(options, console())
    said = console()
    run.say(options, said)
    assert "table2d: 0 of 1 differences in the paper's direction: RoIAlign against RoIPool: +0.0 mask AP (paper +7.3)" in said.file.getvalue()
    assert f"python -m experiments.report --results {options.results} makes a page" in said.file.getvalue()
    readme = report.README.read_text()
    assert report.main(["--results", str(options.results)]) == 0
    text = (options.results / "RESULTS.md").read_text()
    assert "](shapes/table2d.png)" in text and "30.0 (-0.9)" in text and (options.results / "shapes" / "table2d.png").exists()
    assert report.README.read_text() == readme
    capsys.readouterr()
    assert report.main(["--results", str(options.results / "nowhere")]) == 2 and "nowhere has no results of tables" in capsys.readouterr().err


def test_the_published_page_is_made_from_the_results():
    assert page.PAGE.read_text() == page.page()
    assert {file for file in FOLDER.glob("*/*.png")} == {FOLDER / scale.name / f"{table.key}.png" for table in TABLES.values() for scale in SCALES.values() if page.results_of(table, scale)}
    assert report.page is page
