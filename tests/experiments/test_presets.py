"""Every named experiment builds and traces at its full size; the README's table is what the result files say."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks.model.train_step import made_up_batch, standalone
from experiments import curves, report
from experiments.export_result import RESULTS, result
from mrcnn_jax import presets
from mrcnn_jax.config import from_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference import evaluate as scoring
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step
from mrcnn_jax.visualize.draw import read_image


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_train_step_traces_at_full_size(name):
    experiment = standalone(presets.get(name))
    model = MaskRCNN(experiment.model, jnp.dtype(experiment.train.dtype))
    optimizer = make_optimizer(experiment.train, experiment.model, experiment.train.images_per_device)
    state = jax.eval_shape(lambda key: create_state(initialise(model, key), optimizer), jax.random.key(0))
    step = make_train_step(model, optimizer, experiment, jax.devices()[:1])
    after, metrics = jax.eval_shape(step, state, made_up_batch(experiment, devices=1, objects=2))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert {metric.shape for metric in metrics.values()} == {()}


def test_the_table_in_the_readme_is_made_from_the_results():
    readme = report.README.read_text()
    assert report.rendered(readme) == readme
    assert all(f"({path.relative_to(report.README.parent)})" in readme for path in RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_result_says_how_it_was_reached(path):
    content = json.loads(path.read_text())
    assert from_dict(content["config"], path.name).name == content["experiment"]
    assert content["command"].startswith(("mrcnn train ", "mrcnn import-weights ", "make demo")) and content["steps"] == content["config"]["train"]["steps"]
    assert {kind: len(figures) for kind, figures in content["metrics"].items()}.items() <= {"bbox": 12, "segm": 12, "keypoints": 10}.items()
    assert {scoring.KINDS[task] for task in content["config"]["model"]["tasks"]} == set(content["metrics"])


def test_runs_are_drawn_side_by_side(tmp_path, capsys):
    assert curves.main([str(tmp_path / "two.png"), "nuclei_wide", "nuclei_wide_imagenet"]) == 0
    assert read_image(tmp_path / "two.png").std() > 5
    assert curves.main([str(tmp_path / "none.png"), "nuclei_wide", "nowhere"]) == 2
    refusal = capsys.readouterr().err
    assert "nowhere.json holds no history of a run; choose from" in refusal and "nuclei_wide" in refusal and not (tmp_path / "none.png").exists()


def test_an_imagenet_backbone_learns_nuclei_faster_than_chance():
    scratch, imagenet = (
        {line["step"]: line["segm/AP"] for line in history if "segm/AP" in line}
        for history in curves.histories(["nuclei_wide", "nuclei_wide_imagenet"]).values()
    )
    assert scratch.keys() == imagenet.keys() == {100, 200, 300, 400, 500}
    assert all(imagenet[step] > scratch[step] for step in scratch)


def test_training_seconds_are_the_steps_times_their_pace(tmp_path):
    config = {"name": "x", "train": {"images_per_device": 2}}
    lines = [{"step": 1, "loss": 1.0, "images_per_second": 0.2}, {"step": 11, "loss": 1.0, "images_per_second": 4.0}, {"step": 11, "segm/AP": 1.0}]
    for name, content in (("metrics.json", "{}"), ("experiment.json", json.dumps(config)), ("history.jsonl", "\n".join(map(json.dumps, lines)))):
        (tmp_path / name).write_text(content)
    images = 2 * jax.device_count()
    assert result(tmp_path, "mrcnn train x")["training_seconds"] == round(images / 0.2 + 10 * images / 4.0)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"is not a finished run: .*metrics.json is missing"):
        result(tmp_path, "mrcnn train x")
