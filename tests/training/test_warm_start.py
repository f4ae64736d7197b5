"""What a run takes from its data set, from other weights and from the run that trained its proposals; and a run with all branches on frozen ones."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run

from mrcnn_jax.cli.main import main
from mrcnn_jax.config import Experiment, KeypointHeadConfig, ModelConfig, PoolConfig
from mrcnn_jax.data import dataset as records
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Weights, load
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.presets import fine_tune
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training.loop import train
from mrcnn_jax.training.warm_start import (
    Pretrained,
    check_backbone,
    load_frozen_rpn,
    load_pretrained,
    match_preprocessing,
    resolve_dataset_fields,
)

PUPPET = shapes.INFO.keypoint_classes


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def source(base) -> records.DatasetSplit:
    return records.open_dataset(tiny_run.dataset(base), "train")


def with_keypoints(experiment: Experiment, **keypoint) -> Experiment:
    """The experiment with all three branches."""
    head = KeypointHeadConfig(**{"pool": PoolConfig(size=7), "layers": 1, "channels": 16, **keypoint})
    return replace(experiment, model=replace(experiment.model, tasks=("boxes", "masks", "keypoints"), keypoint=head))


# ---- the data set ----


def test_numbers_left_open_are_the_data_sets(source):
    fitted = resolve_dataset_fields(with_keypoints(tiny_run.run_experiment(source.directory), num_keypoints=0), source).model
    assert fitted.num_classes == 7 and fitted.keypoint.num_keypoints == 7 and fitted.keypoint.classes == PUPPET
    assert resolve_dataset_fields(tiny_run.run_experiment(source.directory), source).model.keypoint.num_keypoints == 17  # nobody asks for any


def test_numbers_that_differ_are_refused(source):
    experiment = tiny_run.run_experiment(source.directory)
    five = replace(experiment, model=replace(experiment.model, num_classes=5))
    with pytest.raises(InputError, match="^model.num_classes is 5, but .*tiny-shapes has 7 classes; 0 takes the number from the data set$"):
        resolve_dataset_fields(five, source)
    with pytest.raises(InputError, match=r"^model.keypoint says 17 keypoints of the classes \(0,\), but .*tiny-shapes has 7 of \(6,\); .* takes both from"):
        resolve_dataset_fields(with_keypoints(experiment), source)
    assert resolve_dataset_fields(with_keypoints(experiment, num_keypoints=7, classes=PUPPET), source).model.keypoint.classes == PUPPET


def test_a_set_without_keypoints_is_refused(source, tmp_path):
    info = shapes.INFO._replace(keypoint_names=(), keypoint_flip=(), skeleton=(), keypoint_classes=(), keypoint_sigmas=())
    record = source[0]
    bare = record._replace(objects=record.objects._replace(keypoints=np.zeros((len(record.objects.ids), 0, 3), np.float32)))
    write_dataset(tmp_path / "bare", info, {"train": [bare]})
    with pytest.raises(InputError, match="^model.tasks has keypoints, but no class of .*bare has any: leave keypoints out, or prepare the set with them$"):
        resolve_dataset_fields(with_keypoints(tiny_run.run_experiment(tmp_path), num_keypoints=0), records.open_dataset(tmp_path / "bare", "train"))


# ---- weights to start from ----

PETS = DatasetInfo("pets", (1, 2, 3), ("cat", "dog", "owl"))
CLASS_LAYERS = ["box/classes", "box/deltas", "mask/logits"]


variables = cache(tiny.variables)


def weights(model: ModelConfig, given: dict | None = None, info: DatasetInfo = PETS) -> Weights:
    return Weights(replace(Experiment(), model=model), info, given or variables(model, seed=1))


def adopted(given: Weights, model: ModelConfig, info: DatasetInfo = PETS) -> Pretrained:
    """What the model starts with, of which exactly the arrays ``at_random`` are still those that it had."""
    random = variables(model)
    result = load_pretrained(random, given, model, info, "weights/pets")
    before, after = tiny.names_and_leaves(random), tiny.names_and_leaves(result.variables)
    assert before.keys() == after.keys()
    for name, array in after.items():
        _, path = name[2:-2].replace("']['", "/").split("/", 1)
        path = re.sub("(logits|upsample)_", r"\1/", path)
        assert np.array_equal(array, before[name]) == any(f"{path}/".startswith(f"{layer}/") for layer in result.at_random), name
    return result


def test_the_same_classes_keep_all_layers():
    result = adopted(weights(tiny.model_config()), tiny.model_config(), PETS._replace(name="other pets", category_ids=(4, 5, 6)))
    assert result.at_random == result.left == []
    tiny.assert_same(result.variables, variables(tiny.model_config(), seed=1))


@pytest.mark.parametrize("names", [("cat", "dog"), ("cat", "owl", "dog"), ("cat", "dog", "emu"), ("cat", "dog", "owl", "emu")])
def test_other_classes_start_anew(names):
    model = tiny.model_config(len(names))
    result = adopted(weights(tiny.model_config()), model, DatasetInfo("mine", tuple(range(len(names))), names))
    assert result.at_random == CLASS_LAYERS and result.left == []


def test_masks_without_classes_are_kept():
    agnostic = replace(tiny.model_config(), mask=replace(tiny.model_config().mask, class_agnostic=True))
    emus = PETS._replace(category_names=("emu", "hen", "kea"))
    assert adopted(weights(agnostic), agnostic, emus).at_random == ["box/classes", "box/deltas"]
    assert adopted(weights(agnostic), tiny.model_config()).at_random == ["mask/logits"]  # those of one map do not fit three


def test_other_keypoints_start_anew():
    model = with_keypoints(replace(Experiment(), model=tiny.model_config()), num_keypoints=2).model
    posed = PETS._replace(keypoint_names=("nose", "tail"), keypoint_flip=(0, 1), keypoint_classes=(0,))
    assert adopted(weights(model, info=posed), model, posed).at_random == []
    assert adopted(weights(model, info=posed), model, posed._replace(keypoint_names=("nose", "ear"))).at_random == ["keypoint/logits"]
    assert adopted(weights(tiny.model_config()), model, posed).at_random == ["keypoint"]
    assert adopted(weights(model, info=posed), tiny.model_config(), posed).left == ["keypoint"]


def test_a_part_of_a_model_is_taken_and_what_does_not_fit_is_named():
    model, given = tiny.model_config(), variables(tiny.model_config(), seed=1)["params"]
    mask = {"conv1": given["mask"]["conv1"], "logits": {**given["mask"]["logits"], "bias": np.zeros(5, np.float32)}}
    part = {"backbone": given["backbone"], "mask": mask, "rpn": {**given["rpn"], "conv9": given["rpn"]["conv1"]}}
    result = adopted(weights(model, {"params": part}), model)
    assert result.at_random == ["box", "fpn", "mask/logits/bias", "mask/upsample"] and result.left == ["rpn/conv9"]


def test_nothing_that_fits_is_refused():
    with pytest.raises(InputError, match="^train.weights_from weights/pets has no layer of this model$"):
        adopted(weights(tiny.model_config(), {"params": {"proposer": {"conv1": {"kernel": np.zeros(1)}}}}), tiny.model_config())


def test_a_separate_proposer_is_left_to_the_run_that_trained_it():
    joint = tiny.model_config()
    separate = replace(joint, rpn=replace(joint.rpn, training="separate"))
    result = load_pretrained(variables(separate), weights(joint), separate, PETS, "weights/pets")
    assert result.at_random == [] and result.left == ["rpn"]
    tiny.assert_same(result.variables["params"]["proposer"], variables(separate)["params"]["proposer"])


def test_the_backbones_last_stage_goes_into_the_head_of_c4():
    pyramid = tiny.model_config(norm="frozen")
    box, roi = replace(pyramid.box, fully_connected=0), replace(pyramid.roi, levels=(4, 4))
    model = replace(pyramid, backbone=replace(pyramid.backbone, features="c4"), roi=roi, box=box)
    backbone = {name: {"backbone": tree["backbone"]} for name, tree in variables(pyramid, seed=1).items()}
    result = adopted(weights(pyramid, backbone), model)
    assert result.at_random == ["box", "mask", "rpn"] and result.left == []
    for collection in ("params", "frozen"):
        last = {name: block for name, block in backbone[collection]["backbone"].items() if name.startswith("res5_")}
        tiny.assert_same(result.variables[collection]["res5"], last)
    back = load_pretrained(variables(pyramid), weights(model, result.variables), pyramid, PETS, "weights/c4")  # and out of it
    tiny.assert_same(back.variables["params"]["backbone"], backbone["params"]["backbone"])


def test_the_vectors_of_batch_norm_go_where_the_model_keeps_them():
    frozen, learned = tiny.model_config(norm="frozen"), tiny.model_config(norm="batch")
    result = adopted(weights(frozen), learned)
    assert result.at_random == result.left == []
    given, norm = variables(frozen, seed=1)["frozen"]["backbone"]["stem_norm"], ("backbone", "stem_norm")
    for collection, names in (("params", ("scale", "bias")), ("batch_stats", ("mean", "var"))):
        found = result.variables[collection][norm[0]][norm[1]]
        tiny.assert_same(found, {name: given[name] for name in names})
    back = adopted(weights(learned, result.variables), frozen)
    tiny.assert_same(back.variables, variables(frozen, seed=1))


def test_the_model_sees_images_as_its_weights_do():
    theirs = tiny.model_config(norm="frozen", norm_epsilon=0.0, stride_in_1x1=False)
    theirs = replace(theirs, channel_order="bgr", pixel_mean=(1.0, 2.0, 3.0), pixel_std=(1.0, 1.0, 1.0))
    assert match_preprocessing(tiny.model_config(num_classes=9, norm="frozen"), theirs) == replace(theirs, num_classes=9)
    measured = match_preprocessing(tiny.model_config(norm="group", norm_epsilon=1e-3), theirs)  # an epsilon of 0 is for norms that are frozen
    assert measured == replace(theirs, backbone=replace(theirs.backbone, norm="group", norm_epsilon=1e-3))


def test_another_backbone_is_refused():
    check_backbone(tiny.model_config(norm="batch", features="fpn", freeze_stages=3), tiny.model_config(), "weights/r18")
    with pytest.raises(InputError) as refusal:
        check_backbone(tiny.model_config(), tiny.model_config(name="resnet50", groups=2, group_width=32), "weights/x50")
    assert str(refusal.value) == (
        "train.weights_from weights/x50 has another backbone: backbone.name is resnet50 there and resnet18 here, "
        "backbone.groups is 2 there and 1 here, backbone.group_width is 32 there and 64 here"
    )


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
    train(replace(experiment, model=replace(experiment.model, tasks=())), directory, tiny_run.recording_console())
    return directory


@pytest.fixture(scope="module")
def separate_run(base, rpn_run) -> Path:
    """Two steps of a detector with all branches whose proposals come from that network."""
    experiment = with_keypoints(tiny_run.run_experiment(tiny_run.dataset(base), steps=2, learning_rate=0.005), num_keypoints=0)
    directory = base / "separate-run"
    train(on_frozen_proposals(experiment, rpn_run), directory, tiny_run.recording_console())
    return directory


def test_proposals_alone_are_scored_by_recall(rpn_run):
    metrics = json.loads((rpn_run / "metrics.json").read_text())
    assert list(metrics) == ["proposals"] and list(metrics["proposals"])[:3] == ["AR10", "AR100", "AR1000"]
    assert 0 < metrics["proposals"]["AR10"] <= metrics["proposals"]["AR100"]
    last = json.loads((rpn_run / "history.jsonl").read_text().splitlines()[-1])
    assert last == {"step": 2, "proposals/AR100": metrics["proposals"]["AR100"], "proposals/AR1000": metrics["proposals"]["AR1000"]}
    found = load(rpn_run)(np.zeros((60, 90, 3), np.uint8))
    assert len(found.boxes) and found.masks is None and found.keypoints is None and not found.class_ids.any()


def test_region_proposals_alone_can_be_tuned(rpn_run):
    experiment = fine_tune(rpn_run)
    assert experiment.train.init_from == str(rpn_run) and experiment.model.tasks == () and experiment.model.num_classes == 0


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
        return model.proposals(*model.objectness(pyramid), model.anchors(pyramid, images.shape[1:3]), sizes)

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
        load_frozen_rpn({}, on_frozen_proposals(experiment, separate_run))
    wider = replace(experiment, model=replace(experiment.model, backbone=replace(experiment.model.backbone, width=16)))
    darker = replace(experiment, model=replace(experiment.model, pixel_mean=(0.0, 0.0, 0.0)))
    for other in (wider, darker):
        with pytest.raises(InputError, match="has another backbone, pixel_mean, pixel_std or anchors: its model must see images as this experiment's does$"):
            load_frozen_rpn({}, on_frozen_proposals(other, rpn_run))
    with pytest.raises(InputError, match="holds no checkpoints: give the directory of a training run, or of imported weights$"):
        load_frozen_rpn({}, on_frozen_proposals(experiment, base / "nowhere"))
