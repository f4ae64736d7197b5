"""Fields from the data set, pretrained weights, and frozen proposals of another run."""

import json
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run
from variants import VARIANTS

from mrcnn_jax.cli.main import main
from mrcnn_jax.config import TORCHVISION, BranchPoolConfig, Experiment, KeypointHeadConfig, ModelConfig
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset import DatasetSplit, open_dataset
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
def source(base) -> DatasetSplit:
    return open_dataset(tiny_run.dataset(base), "train")


def with_keypoints(experiment: Experiment, **keypoint) -> Experiment:
    """Returns the experiment with all three branches."""
    head = KeypointHeadConfig(**{"pool": BranchPoolConfig(size=7), "layers": 1, "channels": 16, **keypoint})
    model = replace(experiment.model, tasks=("boxes", "masks", "keypoints"), keypoint=head)
    return replace(experiment, model=model)


# ---- the data set ----


def test_open_fields_are_taken_from_the_data_set(source):
    experiment = with_keypoints(tiny_run.run_experiment(source.directory), num_keypoints=0)
    model = resolve_dataset_fields(experiment, source).model
    assert model.num_classes == 7 and model.keypoint.num_keypoints == 7 and model.keypoint.classes == PUPPET
    without = resolve_dataset_fields(tiny_run.run_experiment(source.directory), source)
    assert without.model.keypoint.num_keypoints == 17  # unused


def test_fields_that_differ_from_the_data_set_are_rejected(source):
    experiment = tiny_run.run_experiment(source.directory)
    five = replace(experiment, model=replace(experiment.model, num_classes=5))
    message = "^model.num_classes is 5, but .*tiny-shapes has 7 classes; 0 takes the number from the data"
    with pytest.raises(InputError, match=message):
        resolve_dataset_fields(five, source)
    message = r"^model.keypoint has 17 keypoints of the classes \(0,\), but .* has 7 of \(6,\); .* takes both"
    with pytest.raises(InputError, match=message):
        resolve_dataset_fields(with_keypoints(experiment), source)
    equal = with_keypoints(experiment, num_keypoints=7, classes=PUPPET)
    assert resolve_dataset_fields(equal, source).model.keypoint.classes == PUPPET


def test_data_set_without_keypoints_is_rejected(source, tmp_path):
    fields = ("keypoint_names", "keypoint_flip", "skeleton", "keypoint_classes", "keypoint_sigmas")
    info = shapes.INFO._replace(**dict.fromkeys(fields, ()))
    objects = source[0].objects
    objects = objects._replace(keypoints=np.zeros((len(objects.ids), 0, 3), np.float32))
    write_dataset(tmp_path / "bare", info, {"train": [source[0]._replace(objects=objects)]})
    experiment = with_keypoints(tiny_run.run_experiment(tmp_path), num_keypoints=0)
    with pytest.raises(InputError, match="^model.tasks has keypoints, but no class of .*bare has any: leave"):
        resolve_dataset_fields(experiment, open_dataset(tmp_path / "bare", "train"))


# ---- pretrained weights ----

PETS = DatasetInfo("pets", (1, 2, 3), ("cat", "dog", "owl"))
CLASS_LAYERS = ["box/classes", "box/deltas", "mask/logits"]


variables = cache(tiny.variables)


def weights(model: ModelConfig, given: dict | None = None, info: DatasetInfo = PETS) -> Weights:
    return Weights(replace(Experiment(), model=model), info, given or variables(model, seed=1))


def load_checked(given: Weights, model: ModelConfig, info: DatasetInfo = PETS) -> Pretrained:
    """Loads weights, and checks that exactly the arrays named as randomly initialised are unchanged."""
    random = variables(model)
    result = load_pretrained(random, given, model, info, "weights/pets")
    before, after = tiny.names_and_leaves(random), tiny.names_and_leaves(result.variables)
    assert before.keys() == after.keys()
    for name, array in after.items():
        _, path = name[2:-2].replace("']['", "/").split("/", 1)
        path = re.sub("(logits|upsample)_", r"\1/", path)
        is_random = any(f"{path}/".startswith(f"{layer}/") for layer in result.randomly_initialised)
        assert np.array_equal(array, before[name]) == is_random, name
    return result


def test_same_classes_load_all_layers():
    info = PETS._replace(name="other pets", category_ids=(4, 5, 6))
    result = load_checked(weights(tiny.model_config()), tiny.model_config(), info)
    assert result.randomly_initialised == result.unused == []
    tiny.assert_same(result.variables, variables(tiny.model_config(), seed=1))


@pytest.mark.parametrize("names", ["cat dog", "cat owl dog", "cat dog emu", "cat dog owl emu"])
def test_layers_of_other_classes_stay_random(names):
    names = tuple(names.split())
    info = DatasetInfo("mine", tuple(range(len(names))), names)
    result = load_checked(weights(tiny.model_config()), tiny.model_config(len(names)), info)
    assert result.randomly_initialised == CLASS_LAYERS and result.unused == []


def test_class_agnostic_masks_are_loaded():
    agnostic = replace(tiny.model_config(), mask=replace(tiny.model_config().mask, class_agnostic=True))
    emus = PETS._replace(category_names=("emu", "hen", "kea"))
    result = load_checked(weights(agnostic), agnostic, emus)
    assert result.randomly_initialised == ["box/classes", "box/deltas"]
    result = load_checked(weights(agnostic), tiny.model_config())  # one map does not fit three
    assert result.randomly_initialised == ["mask/logits"]


def test_layers_of_other_keypoints_stay_random():
    model = with_keypoints(replace(Experiment(), model=tiny.model_config()), num_keypoints=2).model
    posed = PETS._replace(keypoint_names=("nose", "tail"), keypoint_flip=(0, 1), keypoint_classes=(0,))
    assert load_checked(weights(model, info=posed), model, posed).randomly_initialised == []
    others = posed._replace(keypoint_names=("nose", "ear"))
    assert load_checked(weights(model, info=posed), model, others).randomly_initialised == ["keypoint/logits"]
    assert load_checked(weights(tiny.model_config()), model, posed).randomly_initialised == ["keypoint"]
    assert load_checked(weights(model, info=posed), tiny.model_config(), posed).unused == ["keypoint"]


def test_parts_of_a_model_are_loaded_and_the_rest_named():
    model, given = tiny.model_config(), variables(tiny.model_config(), seed=1)["params"]
    logits = {**given["mask"]["logits"], "bias": np.zeros(5, np.float32)}
    part = {
        "backbone": given["backbone"],
        "mask": {"conv1": given["mask"]["conv1"], "logits": logits},
        "rpn": {**given["rpn"], "conv9": given["rpn"]["conv1"]},
    }
    result = load_checked(weights(model, {"params": part}), model)
    assert result.randomly_initialised == ["box", "fpn", "mask/logits/bias", "mask/upsample"]
    assert result.unused == ["rpn/conv9"]


def test_weights_without_a_matching_layer_are_rejected():
    given = {"params": {"proposer": {"conv1": {"kernel": np.zeros(1)}}}}
    with pytest.raises(InputError, match="^train.init_from weights/pets has no layer of this model$"):
        load_checked(weights(tiny.model_config(), given), tiny.model_config())


def test_frozen_rpn_is_not_loaded_from_pretrained_weights():
    joint = tiny.model_config()
    separate = replace(joint, rpn=replace(joint.rpn, proposals_from="runs/rpn"))
    result = load_pretrained(variables(separate), weights(joint), separate, PETS, "weights/pets")
    assert result.randomly_initialised == [] and result.unused == ["rpn"]
    tiny.assert_same(result.variables["params"]["proposer"], variables(separate)["params"]["proposer"])


def test_res5_is_loaded_into_the_head_of_c4_and_back():
    pyramid = tiny.model_config(norm="frozen")
    box, roi = replace(pyramid.box, fully_connected=0), replace(pyramid.roi, levels=(4, 4))
    model = replace(pyramid, backbone=replace(pyramid.backbone, features="c4"), roi=roi, box=box)
    backbone = {name: {"backbone": tree["backbone"]} for name, tree in variables(pyramid, seed=1).items()}
    result = load_checked(weights(pyramid, backbone), model)
    assert result.randomly_initialised == ["box", "mask", "rpn"] and result.unused == []
    for collection in ("params", "frozen"):
        blocks = backbone[collection]["backbone"].items()
        last = {name: block for name, block in blocks if name.startswith("res5_")}
        tiny.assert_same(result.variables[collection]["res5"], last)
    back = load_pretrained(variables(pyramid), weights(model, result.variables), pyramid, PETS, "weights/c4")
    tiny.assert_same(back.variables["params"]["backbone"], backbone["params"]["backbone"])


def test_a_cascade_gets_each_res5_of_its_own_kind_and_that_of_a_backbone_twice():
    cascade = VARIANTS["MNC"]
    given = variables(cascade, seed=1)
    other = PETS._replace(category_names=tuple(f"other {name}" for name in PETS.category_names))
    tiny.assert_same(load_checked(weights(cascade, given), cascade).variables, given)
    assert load_checked(weights(cascade, given), cascade, other).randomly_initialised == ["instance"]
    network = {"params": {"backbone": given["params"]["res5"]}}
    both = load_checked(weights(cascade, network), cascade).variables["params"]
    for pathway in ("res5", "mask_res5"):
        tiny.assert_same(both[pathway], given["params"]["res5"])


def test_batch_norm_vectors_are_loaded_into_either_collection():
    frozen, learned = tiny.model_config(norm="frozen"), tiny.model_config(norm="batch")
    result = load_checked(weights(frozen), learned)
    assert result.randomly_initialised == result.unused == []
    given, norm = variables(frozen, seed=1)["frozen"]["backbone"]["stem_norm"], ("backbone", "stem_norm")
    for collection, names in (("params", ("scale", "bias")), ("batch_stats", ("mean", "var"))):
        found = result.variables[collection][norm[0]][norm[1]]
        tiny.assert_same(found, {name: given[name] for name in names})
    back = load_checked(weights(learned, result.variables), frozen)
    tiny.assert_same(back.variables, variables(frozen, seed=1))


def test_preprocessing_is_that_of_the_weights():
    theirs = tiny.model_config(norm="frozen", norm_epsilon=0.0, stride_in_1x1=False)
    theirs = replace(theirs, channel_order="bgr", pixel_mean=(1.0, 2.0, 3.0), pixel_std=(1.0, 1.0, 1.0))
    ours = tiny.model_config(num_classes=9, norm="frozen")
    assert match_preprocessing(ours, theirs) == replace(theirs, num_classes=9)
    # an epsilon of 0 is for frozen norms only
    measured = match_preprocessing(tiny.model_config(norm="group", norm_epsilon=1e-3), theirs)
    assert measured == replace(theirs, backbone=replace(theirs.backbone, norm="group", norm_epsilon=1e-3))


def test_another_backbone_is_rejected():
    same = tiny.model_config(norm="batch", features="fpn", freeze_stages=3)
    check_backbone(same, tiny.model_config(), "weights/r18")
    other = tiny.model_config(name="resnet50", groups=2, group_width=32)
    with pytest.raises(InputError) as error:
        check_backbone(tiny.model_config(), other, "weights/x50")
    assert str(error.value) == (
        "train.init_from weights/x50 has another backbone: "
        "backbone.name is resnet50 there and resnet18 here, "
        "backbone.groups is 2 there and 1 here, backbone.group_width is 32 there and 64 here"
    )


# ---- frozen proposals ----


def on_frozen_proposals(experiment: Experiment, run: Path) -> Experiment:
    rpn = replace(experiment.model.rpn, proposals_from=str(run))
    return replace(experiment, model=replace(experiment.model, rpn=rpn))


@pytest.fixture(scope="module")
def rpn_run(base) -> Path:
    """A run of two steps of a region proposal network alone."""
    experiment = tiny_run.run_experiment(tiny_run.dataset(base), steps=2)
    directory = base / "rpn-run"
    experiment = replace(experiment, model=replace(experiment.model, tasks=()))
    train(experiment, directory, tiny_run.recording_console())
    return directory


@pytest.fixture(scope="module")
def separate_run(base, rpn_run) -> Path:
    """A run of two steps of a detector with all branches on the frozen proposals of ``rpn_run``."""
    experiment = tiny_run.run_experiment(tiny_run.dataset(base), steps=2, learning_rate=0.005)
    experiment = with_keypoints(experiment, num_keypoints=0)
    directory = base / "separate-run"
    train(on_frozen_proposals(experiment, rpn_run), directory, tiny_run.recording_console())
    return directory


def test_rpn_alone_is_evaluated_by_recall(rpn_run):
    metrics = json.loads((rpn_run / "metrics.json").read_text())
    assert list(metrics) == ["proposals"] and list(metrics["proposals"])[:3] == ["AR10", "AR100", "AR1000"]
    assert 0 < metrics["proposals"]["AR10"] <= metrics["proposals"]["AR100"]
    last = json.loads((rpn_run / "history.jsonl").read_text().splitlines()[-1])
    headlines = {f"proposals/{name}": metrics["proposals"][name] for name in ("AR100", "AR1000")}
    assert last == {"step": 2, **headlines}
    detections = load(rpn_run)(np.zeros((60, 90, 3), np.uint8))
    assert len(detections.boxes) and not detections.class_ids.any()
    assert detections.masks is None and detections.keypoints is None


def test_rpn_alone_can_be_fine_tuned(rpn_run):
    experiment = fine_tune(rpn_run)
    assert experiment.train.init_from == str(rpn_run)
    assert experiment.model.tasks == () and experiment.model.num_classes == 0


def test_frozen_rpn_has_the_weights_of_its_run_after_training(rpn_run, separate_run):
    state, _ = tiny_run.saved_state(separate_run, 2)
    trained = load(rpn_run).variables["params"]
    assert set(trained) == set(state.params["proposer"]) == {"backbone", "fpn", "rpn"}
    assert "rpn" not in state.params
    tiny.assert_same(state.params["proposer"], trained)
    losses = json.loads((separate_run / "history.jsonl").read_text().splitlines()[0])
    assert {"loss_class", "loss_box", "loss_mask", "loss_keypoint"} < set(losses)
    assert not any(name.startswith("loss_rpn") for name in losses)


def test_frozen_proposals_equal_those_of_the_rpn_run(rpn_run, separate_run):
    detector, other = load(separate_run), load(rpn_run)
    batch = tiny.batch([2, 3])

    def proposals(model, images, sizes):
        pyramid = model.pyramid(images, sizes)
        return model.proposals(*model.objectness(pyramid), model.anchors(pyramid, images.shape[1:3]), sizes)

    def compute(detector, method):
        apply = jax.jit(partial(MaskRCNN(detector.experiment.model).apply, method=method))
        return apply(detector.variables, jnp.asarray(batch.images), jnp.asarray(batch.sizes))

    # of two programs, whose sums are not in the same order
    pairs = (vars(compute(detector, "frozen_proposals")), vars(compute(other, proposals)))
    for name, expected in pairs[1].items():
        np.testing.assert_allclose(pairs[0][name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_all_branches_are_evaluated_and_drawn(separate_run):
    metrics = json.loads((separate_run / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "segm", "keypoints"]
    assert {"AP", "AP50", "AP75", "APm", "AR"} < set(metrics["keypoints"])
    assert (separate_run / "predictions.png").read_bytes().startswith(b"\x89PNG")


def test_detections_have_keypoints_if_their_class_has(separate_run):
    detector = load(separate_run)
    box = replace(detector.experiment.model.box, score_threshold=0.0)  # after two steps every score is low
    detector.experiment = replace(detector.experiment, model=replace(detector.experiment.model, box=box))
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    found = detector(image)
    puppets = np.isin(found.class_ids, PUPPET)
    number = len(found.boxes)
    assert number and found.keypoints.shape == (number, 7, 3) and found.masks.shape == (number, 60, 90)
    assert not found.keypoints[~puppets].any()
    for keypoints, (x1, y1, x2, y2) in zip(found.keypoints[puppets], found.boxes[puppets], strict=True):
        assert (keypoints[:, 2] > 0).all()
        x, y = keypoints[:, 0], keypoints[:, 1]
        assert ((x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)).all()


def test_command_line_predicts_keypoints(separate_run, tmp_path, base):
    source = open_dataset(tiny_run.dataset(base), "validation")
    (tmp_path / "one.png").write_bytes(source[0].image)
    image, out = str(tmp_path / "one.png"), str(tmp_path / "out")
    assert main(["predict", str(separate_run), image, "--out", out]) == 0
    assert read_image(next((tmp_path / "out").glob("*.png"))).any()
    puppets = [source.info.category_ids[index] for index in PUPPET]
    for entry in json.loads((tmp_path / "out" / "results.json").read_text()):
        assert ("keypoints" in entry) == (entry["category_id"] in puppets)


def test_unsuitable_rpn_runs_are_rejected(base, rpn_run, separate_run):
    experiment = tiny_run.run_experiment(tiny_run.dataset(base))
    with pytest.raises(InputError, match="has no RPN of its own: name a run that has$"):
        load_frozen_rpn({}, on_frozen_proposals(experiment, separate_run))
    wider = replace(experiment.model, backbone=replace(experiment.model.backbone, width=16))
    wider = replace(experiment, model=wider)
    darker = replace(experiment, model=replace(experiment.model, pixel_mean=(0.0, 0.0, 0.0)))
    theirs = replace(experiment, model=replace(experiment.model, conventions=TORCHVISION))
    for other in (wider, darker, theirs):
        message = "has another backbone, pixel_mean, pixel_std, channel_order, anchors or conventions"
        with pytest.raises(InputError, match=message):
            load_frozen_rpn({}, on_frozen_proposals(other, rpn_run))
    with pytest.raises(InputError, match="holds no checkpoints: give the directory of a training run"):
        load_frozen_rpn({}, on_frozen_proposals(experiment, base / "nowhere"))
