"""Reports on runs, imported weights and models to share: literal numbers, and whatever is missing."""

import json
import shutil
from math import prod
from pathlib import Path

import jax
import pytest
import tiny
from pages import Page
from saved_runs import INFO, METRICS, image, saved_run, write

from mrcnn_jax import presets
from mrcnn_jax.checkpoint import CheckpointStore
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.inspection.inspect import inspect
from mrcnn_jax.inspection.model import compare_with_preset, count_parameters
from mrcnn_jax.inspection.report import write_data, write_page
from mrcnn_jax.run_description import current_versions, newest_description
from mrcnn_jax.weights.folder import Weights, write_model_folder

LINES = [
    {"step": 1, "loss": 3.5, "learning_rate": 0.01}, {"step": 3, "bbox/AP": 5.0, "segm/AP": 7.5},
    {"step": 6, "loss": 2.5, "learning_rate": 0.01}, {"step": 6, "bbox/AP": 9.0, "segm/AP": 6.0},
]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    saved_run(folder / "run", write(folder / "data"), (3, 6))
    (folder / "run/history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return folder / "run"


@pytest.fixture
def run(original, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(original, tmp_path / "run")


def listing(directory):
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_finished_run(original, tmp_path):
    before = listing(original)
    found = inspect(original, pictures=1)
    assert found.findings == [] and listing(original) == before
    data = found.data["model"]
    assert data["kind"] == "a run at step 6 of 6" and data["metrics"] == METRICS
    assert data["history"] == {
        "lines": 4, "damaged": 0, "last": LINES[2], "last_evaluation": LINES[3],
        "best_evaluation": LINES[3],
    }  # fmt: skip
    places = [("checkpoints", 3), ("checkpoints", 6)]
    assert [(one["in"], one["step"]) for one in data["checkpoints"]] == places
    assert data["checkpoints"][0]["bytes"] > 100_000
    assert data["versions"] == current_versions() and data["versions"]["jax"]
    assert data["changed"]["train.steps"] == [160_000, 6] and data["compared_with"] == "mask_rcnn_r50_fpn"
    with CheckpointStore(original / "checkpoints", read_only=True) as store:
        arrays = store.restore(6).arrays
    expected = sum(prod(array.shape) for name, array in arrays.items() if name.startswith("params."))
    assert sum(part["parameters"] for part in data["parameters"].values()) == expected
    assert list(data["parameters"]) == ["backbone", "box", "fpn", "mask", "rpn"]
    write_page(found, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert page.tags["img"] == 1 and {"best", "orbax-checkpoint", "7.5"} <= set(page.texts)


def test_parameters_of_frozen_stages_are_not_trained():
    shapes = {
        "params.backbone.stem.kernel": (7, 7, 3, 8), "params.backbone.res2_block1.conv1.kernel": (1, 1, 8, 8),
        "params.backbone.res3_block1.conv1.kernel": (2, 5), "params.proposer.rpn.bias": (3,),
        "model_state.batch_stats.mean": (100,), "opt_state.0.trace": (100,),
    }  # fmt: skip
    found = count_parameters(shapes, Experiment())
    assert found == {"backbone": {"arrays": 3, "parameters": 1250, "trained": 10},
                     "proposer": {"arrays": 1, "parameters": 3, "trained": 0}}  # fmt: skip


def test_configuration_is_compared_with_the_preset_of_its_name():
    assert compare_with_preset(presets.get("nuclei")) == ("nuclei", {})
    name, changed = compare_with_preset(tiny.experiment(accumulate=1, seed=3))
    assert name == "mask_rcnn_r50_fpn" and changed["train.seed"] == [0, 3]
    assert changed["data.short_edge"] == [[800], [64]] and "train.accumulate" not in changed


def test_what_is_missing_or_damaged_is_said(run, tmp_path):
    (run / "metrics.json").unlink()
    (run / "history.jsonl").write_bytes(b'{"step": 1, "loss": NaN}\n[nonsense\n{"step": 2, "lo')
    shutil.rmtree(run.parent / "data", ignore_errors=True)
    newest = newest_description(run)[1]
    values = to_dict(newest.experiment)
    values["data"]["dataset"] = "nowhere"
    about = run / "checkpoints/6/about/metadata"
    stored = json.loads(about.read_text()) | {"experiment": values, "versions": None}
    about.write_text(json.dumps(stored))
    (run / "experiment.json").write_text(json.dumps(values))
    before = listing(run)
    found = inspect(run, pictures=1)
    assert listing(run) == before
    expected = ["metrics.json is missing", "1 of 2 lines of history.jsonl are damaged",
                "before versions of libraries were recorded", "the data set nowhere is not here"]  # fmt: skip
    assert len(found.findings) == 4
    assert all(part in finding for part, finding in zip(expected, found.findings, strict=True))
    write_data(found, tmp_path / "data.json")
    assert json.loads((tmp_path / "data.json").read_text())["model"]["history"]["last"]["loss"] is None
    write_page(found, tmp_path / "page.html")
    (run / "history.jsonl").unlink()
    assert "history.jsonl is missing" in "".join(inspect(run).findings)


def test_a_run_that_is_not_finished(run):
    shutil.rmtree(run / "checkpoints/6")
    (run / "metrics.json").write_text("damaged")
    first, *_, last = inspect(run).findings
    assert first.startswith("the run is not finished: 3 of 6 steps are saved")
    assert "metrics.json is damaged" in last


def test_a_changed_data_set_is_said(run, original):
    data = newest_description(run)[1].experiment.data.dataset
    kept = shutil.copytree(data, run.parent / "kept")
    try:
        write(Path(data), train=[image(1)])
        (finding,) = inspect(run).findings
        assert finding.endswith("has changed since: train: 2 images before, 1 now, 4 objects before, 2 now")
    finally:
        shutil.rmtree(data)
        shutil.copytree(kept, data)


def test_a_run_without_a_checkpoint(run):
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.json").unlink()
    found = inspect(run)
    assert found.findings[0] == "there is no checkpoint that can be read"
    assert found.data["model"]["kind"] == "a run at step 0 of 6"
    (run / "experiment.json").unlink()
    with pytest.raises(InputError, match=r"neither a checkpoint that can be read nor experiment\.json"):
        inspect(run)


def test_a_model_to_share_and_a_damaged_one(tmp_path):
    experiment = tiny.experiment()
    variables = tiny.variables(experiment.model)
    write_model_folder(tmp_path / "model", Weights(experiment, INFO, variables))
    found = inspect(tmp_path / "model")
    expected = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert sum(part["parameters"] for part in found.data["model"]["parameters"].values()) == expected
    assert found.data["model"]["kind"] == "a model to share" and found.findings == []
    (tmp_path / "model/export.json").touch()
    assert inspect(tmp_path / "model").data["model"]["kind"] == "an exported detector"
    (tmp_path / "model/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        inspect(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()  # as in an export to ONNX
    found = inspect(tmp_path / "model")
    assert found.data["model"]["kind"] == "an exported detector" and found.findings == []


def test_experiments_are_for_data_sets(original):
    with pytest.raises(InputError, match="--experiment is for data sets"):
        inspect(original, "small")
    data = newest_description(original)[1].experiment.data.dataset
    assert inspect(data, str(original)).data["dataset"]["experiment"] == "tiny"
