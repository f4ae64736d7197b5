"""What a run takes from its data set and from the run that trained its proposals; and a run with all branches on frozen proposals."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run

from mrcnn_jax.cli import main
from mrcnn_jax.config import Experiment, KeypointHeadConfig, PoolConfig
from mrcnn_jax.data import records, shapes
from mrcnn_jax.detector import load
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.training.beginning import adopt_proposer, fit_to_dataset
from mrcnn_jax.training.loop import train
from mrcnn_jax.visualize import read_image

PUPPET = shapes.INFO.keypoint_classes


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def source(base) -> records.RecordSource:
    return records.open_dataset(tiny_run.dataset(base), "train")


def with_keypoints(experiment: Experiment, **keypoint) -> Experiment:
    """The experiment with all three branches."""
    head = KeypointHeadConfig(**{"pool": PoolConfig(size=7), "layers": 1, "channels": 16, **keypoint})
    return replace(experiment, model=replace(experiment.model, tasks=("boxes", "masks", "keypoints"), keypoint=head))


# ---- the data set ----


def test_numbers_left_open_are_the_data_sets(source):
    fitted = fit_to_dataset(with_keypoints(tiny_run.run_experiment(source.directory), num_keypoints=0), source).model
    assert fitted.num_classes == 7 and fitted.keypoint.num_keypoints == 7 and fitted.keypoint.classes == PUPPET
    assert fit_to_dataset(tiny_run.run_experiment(source.directory), source).model.keypoint.num_keypoints == 17  # nobody asks for any


def test_numbers_that_differ_are_refused(source):
    experiment = tiny_run.run_experiment(source.directory)
    five = replace(experiment, model=replace(experiment.model, num_classes=5))
    with pytest.raises(InputError, match="^model.num_classes is 5, but .*tiny-shapes has 7 classes; 0 takes the number from the data set$"):
        fit_to_dataset(five, source)
    with pytest.raises(InputError, match=r"^model.keypoint says 17 keypoints of the classes \(0,\), but .*tiny-shapes has 7 of \(6,\); .* takes both from"):
        fit_to_dataset(with_keypoints(experiment), source)
    assert fit_to_dataset(with_keypoints(experiment, num_keypoints=7, classes=PUPPET), source).model.keypoint.classes == PUPPET


def test_a_set_without_keypoints_is_refused(source, tmp_path):
    info = shapes.INFO._replace(keypoint_names=(), keypoint_flip=(), skeleton=(), keypoint_classes=(), keypoint_sigmas=())
    record = source[0]
    bare = record._replace(objects=record.objects._replace(keypoints=np.zeros((len(record.objects.ids), 0, 3), np.float32)))
    records.write(tmp_path / "bare", info, {"train": [bare]})
    with pytest.raises(InputError, match="^model.tasks has keypoints, but no class of .*bare has any: leave keypoints out, or prepare the set with them$"):
        fit_to_dataset(with_keypoints(tiny_run.run_experiment(tmp_path), num_keypoints=0), records.open_dataset(tmp_path / "bare", "train"))


# ---- separately trained proposals ----


def on_frozen_proposals(experiment: Experiment, run: Path) -> Experiment:
    return replace(
        experiment,
        model=replace(experiment.model, rpn=replace(experiment.model.rpn, training="separate")),
        train=replace(experiment.train, rpn_from=str(run)),
    )


@pytest.fixture(scope="module")
def rpn_run(base) -> Path:
    """Two steps of a region proposal network alone."""
    experiment = tiny_run.run_experiment(tiny_run.dataset(base), steps=2)
    directory = base / "rpn-run"
    train(replace(experiment, model=replace(experiment.model, tasks=())), directory, tiny_run.quiet())
    return directory


@pytest.fixture(scope="module")
def separate_run(base, rpn_run) -> Path:
    """Two steps of a detector with all branches whose proposals come from that network."""
    experiment = with_keypoints(tiny_run.run_experiment(tiny_run.dataset(base), steps=2, learning_rate=0.005), num_keypoints=0)
    directory = base / "separate-run"
    train(on_frozen_proposals(experiment, rpn_run), directory, tiny_run.quiet())
    return directory


def test_proposals_alone_are_scored_by_recall(rpn_run):
    metrics = json.loads((rpn_run / "metrics.json").read_text())
    assert list(metrics) == ["proposals"] and list(metrics["proposals"])[:3] == ["AR10", "AR100", "AR1000"]
    assert 0 < metrics["proposals"]["AR10"] <= metrics["proposals"]["AR100"]
    last = json.loads((rpn_run / "history.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 2, "proposals/AR100": metrics["proposals"]["AR100"], "proposals/AR1000": metrics["proposals"]["AR1000"]}
    found = load(rpn_run)(np.zeros((60, 90, 3), np.uint8))
    assert len(found.boxes) and found.masks is None and found.keypoints is None and not found.class_ids.any()


def test_the_proposers_weights_are_the_other_runs_and_stay(rpn_run, separate_run):
    state, _ = tiny_run.saved_state(separate_run, 2)
    trained = load(rpn_run).variables["params"]
    assert set(trained) == set(state.params["proposer"]) == {"backbone", "fpn", "rpn"} and "rpn" not in state.params
    tiny.assert_same(state.params["proposer"], trained)
    losses = json.loads((separate_run / "history.jsonl").read_text().splitlines()[0])
    assert {"loss_class", "loss_box", "loss_mask", "loss_keypoint"} < set(losses) and not any(name.startswith("loss_rpn") for name in losses)


def test_its_proposals_are_the_other_runs(rpn_run, separate_run):
    detector, other = load(separate_run), load(rpn_run)
    batch = tiny.batch([2, 3])

    def alone(model, images, sizes):
        pyramid = model.pyramid(images, sizes)
        return model.proposals(*model.objectness(pyramid), model.anchors(pyramid), sizes)

    given = jnp.asarray(batch.images), jnp.asarray(batch.sizes)
    frozen = jax.jit(lambda *given: MaskRCNN(detector.experiment.model).apply(detector.variables, *given, method="frozen_proposals"))(*given)
    tiny.assert_same(frozen, jax.jit(lambda *given: MaskRCNN(other.experiment.model).apply(other.variables, *given, method=alone))(*given))


def test_it_is_scored_and_drawn_with_all_its_branches(separate_run):
    metrics = json.loads((separate_run / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "segm", "keypoints"] and {"AP", "AP50", "AP75", "APm", "AR"} < set(metrics["keypoints"])
    assert (separate_run / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_a_detection_has_keypoints_where_its_class_has_them(separate_run):
    detector = load(separate_run)
    box = replace(detector.experiment.model.box, score_threshold=0.0)  # hardly trained, it is sure of nothing
    detector.experiment = replace(detector.experiment, model=replace(detector.experiment.model, box=box))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    found = detector(image)
    puppets = np.isin(found.class_ids, PUPPET)
    assert found.keypoints.shape == (len(found.boxes), 7, 3) and found.masks.shape == (len(found.boxes), 60, 90) and len(found.boxes)
    assert not found.keypoints[~puppets].any()
    for keypoints, (x1, y1, x2, y2) in zip(found.keypoints[puppets], found.boxes[puppets], strict=True):
        assert (keypoints[:, 2] > 0).all()
        assert ((keypoints[:, 0] >= x1) & (keypoints[:, 0] <= x2) & (keypoints[:, 1] >= y1) & (keypoints[:, 1] <= y2)).all()


def test_from_the_command_line(separate_run, tmp_path, base):
    source = records.open_dataset(tiny_run.dataset(base), "validation")
    (tmp_path / "one.png").write_bytes(source[0].image)
    assert main(["predict", str(separate_run), str(tmp_path / "one.png"), "--out", str(tmp_path / "out")]) == 0
    assert read_image(next((tmp_path / "out").glob("*.png"))).any()
    for entry in json.loads((tmp_path / "out" / "results.json").read_text()):
        assert ("keypoints" in entry) == (entry["category_id"] in [source.info.category_ids[index] for index in PUPPET])


def test_what_does_not_fit_as_proposer_is_refused(base, rpn_run, separate_run):
    experiment = tiny_run.run_experiment(tiny_run.dataset(base))
    with pytest.raises(InputError, match="has no RPN of its own: name the run that trained one$"):
        adopt_proposer({}, on_frozen_proposals(experiment, separate_run))
    wider = replace(experiment, model=replace(experiment.model, backbone=replace(experiment.model.backbone, width=16)))
    darker = replace(experiment, model=replace(experiment.model, pixel_mean=(0.0, 0.0, 0.0)))
    for other in (wider, darker):
        with pytest.raises(InputError, match="has another backbone, pixel_mean, pixel_std or anchors: its model must see images as this experiment's does$"):
            adopt_proposer({}, on_frozen_proposals(other, rpn_run))
    with pytest.raises(InputError, match="holds no checkpoints: give the directory of a training run$"):
        adopt_proposer({}, on_frozen_proposals(experiment, base / "nowhere"))
