"""The command line: help names everything, whatever is wrong is one sentence and leaves nothing behind. Training has its own tests."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny_cityscapes
from paths import REPOSITORY
from pycocotools import mask as coco_mask

from benchmarks.roi import measure as roi_ops
from benchmarks.tpu import compile_train_step as tpu_compile
from experiments import run as tables
from mrcnn_jax import presets
from mrcnn_jax.checkpoint import Checkpoints
from mrcnn_jax.cli import main as cli
from mrcnn_jax.config import DataConfig, Experiment
from mrcnn_jax.data import dataset as records
from mrcnn_jax.structures import DatasetInfo, Detections
from mrcnn_jax.visualize.draw import read_image

HEIGHT, WIDTH = 24, 36
# pycocotools 2.0.11 itself asks NumPy 2 for a copy in a deprecated way when it decodes a mask.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    """Default places (data/, runs/, predictions/) lie below the working directory; help is laid out for a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli, "CONSOLE", cli.Console(width=200))


@pytest.fixture
def mrcnn(capsys):
    """``mrcnn(*arguments)``: exit status, stdout, stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:  # how the argument parser ends
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def refused(mrcnn):
    """``refused(*arguments)``: the sentence with which a call ends that fails and leaves the working directory as it was."""

    def call(*arguments) -> str:
        before = listing()
        status, out, err = mrcnn(*arguments)
        assert status == 2 and out == ""
        assert listing() == before
        assert err.startswith("mrcnn: ") and err.endswith("\n") and err.count("\n") == 1, err
        return err[len("mrcnn: ") : -1]

    return call


@pytest.fixture
def refused_by_parser(mrcnn):
    """The same for what the argument parser refuses: its box of text, on one line."""

    def call(*arguments) -> str:
        before = listing()
        status, out, err = mrcnn(*arguments)
        assert status == 2 and out == "" and listing() == before and "Traceback" not in err
        return " ".join(err.replace("│", " ").split())

    return call


def listing() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def options(config, prefix: str) -> list[str]:
    """The name that every field of a configuration has on the command line."""
    names = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name.replace('_', '-')}"
        names += options(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]
    return names


# ---- help


def test_help_names_every_command(mrcnn):
    for flag in ("--help", "-h"):
        status, out, err = mrcnn(flag)
        assert status == 0 and err == ""
        assert all(f"\n  {name} " in out and function.__doc__ in out for name, function in cli.COMMANDS.items())
        assert set(cli.COMMANDS) == {"train", "evaluate", "predict", "dataset", "import-weights", "export-weights"}


def test_help_of_train_names_every_experiment(mrcnn):
    for flag in ("--help", "-h"):
        status, out, err = mrcnn("train", flag)
        assert status == 0 and err == ""
        assert all(f"\n  {name} " in out and presets.describe(name) in out for name in presets.PRESETS)
        assert "usage: mrcnn train EXPERIMENT|DIR " in out and "runs/<name of DIR>_tuned" in out and "--train.weights-from DIR" in out


@pytest.mark.parametrize("name", presets.PRESETS)
def test_help_of_an_experiment_names_every_field_with_its_value(mrcnn, name):
    status, out, err = mrcnn("train", name, "--help")
    assert status == 0 and err == ""
    words = out.replace(",", " ").split()
    missing = [option for option in options(Experiment(), "--") if option not in words]
    assert not missing and "--directory" in words
    steps = presets.get(name).train.steps
    assert f"(default: {steps})" in out and f"(default: runs/{name})" in out


@pytest.mark.parametrize(
    "command, names",
    [
        ("evaluate", ["--dataset", "--split", "--out", "--pictures", "--cityscapes"]),
        ("predict", ["--out", "--score"]),
        ("dataset", ["--out", "--train", "--validation", "--validation-images", "--keypoints", "--overwrite", "--draw"]),
        ("import-weights", ["--out", "--config", "--classes", "--partial"]),
        ("export-weights", []),
    ],
)
def test_help_of_a_command_names_every_option(mrcnn, command, names):
    status, out, err = mrcnn(command, "--help")
    assert status == 0 and err == "" and f"usage: mrcnn {command}" in out
    words = out.replace(",", " ").split()
    assert all(name in words for name in names)
    config = getattr(cli, command.title().replace("-", ""))
    positional = {"directory", "images", "folder", "source", "file", "target"}
    assert len(names) == len({field.name for field in dataclasses.fields(config)} - positional)


def test_help_of_import_weights_says_what_a_file_does_not(mrcnn):
    said = " ".join(mrcnn("import-weights", "--help")[1].split())
    assert "`--model.backbone.norm-epsilon 1e-5`" in said and "mrcnn_jax[torch]" in said and "`mrcnn train mask_rcnn_r50_fpn --help` lists the fields" in said


@pytest.mark.parametrize("arguments", [(), ("train",)])
def test_nothing_asked_for_shows_the_usage_and_fails(mrcnn, arguments):
    status, out, _ = mrcnn(*arguments)
    assert status == 2 and out.startswith("usage: mrcnn ")


# ---- commands, experiments, fields


def test_unknown_commands_and_experiments(refused):
    assert refused("tarin") == "there is no command 'tarin'; choose from train, evaluate, predict, dataset, import-weights, export-weights"
    assert refused("train", "demoo") == f"there is no experiment 'demoo'; choose from {', '.join(presets.PRESETS)}"
    assert refused("train", "--train.steps", "5").startswith("there is no experiment '--train.steps'; choose from demo")


@pytest.mark.parametrize(
    "given, said",
    [
        (("--train.stepz", "5"), "--train.stepz"),
        (("--steps", "5"), "--steps"),
        (("extra",), "extra"),
        (("--train.steps", "many"), "--train.steps: invalid literal for int() with base 10: 'many'"),
        (("--train.steps", "1.5"), "--train.steps: invalid literal for int() with base 10: '1.5'"),
        (("--train.steps",), "--train.steps"),
        (("--train.steps", "-5"), "train.steps must be greater than 0, not -5"),
        (("--model.backbone.name", "resnet51"), "invalid choice 'resnet51' for argument '--model.backbone.name'"),
        (("--model.rpn.anchor-sizes", "8", "16"), "rpn.anchor_sizes needs one size for each of the 5 levels of backbone.features fpn, not 2"),
        (("--data.short-edge", "900"), "data.long_edge must be at least the shorter edge 900, not 160"),
    ],
)
def test_wrong_fields_are_named_by_the_parser(refused_by_parser, given, said):
    assert said in refused_by_parser("train", "demo", *given)


@pytest.mark.parametrize("command", ["evaluate", "predict", "dataset"])
def test_arguments_of_other_commands(refused_by_parser, command):
    assert "Missing" in refused_by_parser(command) and ("PATH" if command == "dataset" else "STR") in refused_by_parser(command)
    assert "--scores" in refused_by_parser(command, "a", "--scores", "0.5")
    assert "--out" in refused_by_parser(command, "a", "--out")


# ---- data sets and runs that are not there


def test_a_missing_data_set_is_named(refused):
    not_prepared = "is not a prepared data set: prepare one there first."
    assert refused("train", "nuclei") == f"{Path('data/nuclei').absolute()} {not_prepared}"
    assert refused("train", "demo", "--data.dataset", "none", "--directory", "run") == f"{Path('none').absolute()} {not_prepared}"
    assert refused("dataset", "none") == "none is not a folder."


def test_a_run_directory_without_checkpoints_is_named(refused):
    photograph("a.png")
    Path("empty").mkdir()
    Path("begun/checkpoints").mkdir(parents=True)
    for name in ("none", "empty"):
        for arguments in (("evaluate", name), ("predict", name, "a.png")):
            assert refused(*arguments) == f"{name} holds no checkpoints: give the directory of a training run, or of imported weights"
    assert refused("predict", "begun", "a.png") == "begun holds no complete checkpoint yet"
    assert refused("evaluate", "begun") == "begun holds no complete checkpoint yet"


# ---- a run directory, and what is wrong with the rest


def photograph(path: str, height: int = HEIGHT, width: int = WIDTH) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))
    return Path(path)


@pytest.fixture
def run(monkeypatch) -> Path:
    """A run directory whose checkpoint tells its experiment and classes; the parameters are never looked at here."""
    monkeypatch.setattr("mrcnn_jax.inference.detector.wanted_arrays", lambda model: {"params/kernel"})
    checkpoints = Checkpoints("run/checkpoints")
    info = DatasetInfo("things", (3, 90), ("cat", "dog"))
    experiment = Experiment(data=DataConfig(dataset="data/gone"))
    checkpoints.save(5, {"params": {"kernel": np.zeros(2, np.float32)}, "model_state": {}}, 10, experiment, info)
    checkpoints.wait()
    checkpoints.close()
    return Path("run")


def test_missing_images_are_named_before_anything_is_done(refused, run):
    photograph("a.png")
    assert refused("predict", run, "a.png", "b.png") == "there is no image file or folder b.png"
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("no image")
    assert refused("predict", run, "folder").startswith("no image files in folder: give image files, or folders that hold .jpg, .jpeg, .png")
    assert refused("predict", run).startswith("no image files in the command line: give image files")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_unreadable_images_are_named_and_leave_no_results(mrcnn, run, damage):
    data = photograph("broken.jpg", 64, 64).read_bytes()
    Path("broken.jpg").write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"no image"}[damage])
    before = listing()
    status, _, err = mrcnn("predict", run, "broken.jpg")
    assert status == 2 and listing() == before
    assert err.startswith("mrcnn: cannot read image broken.jpg: ") and err.count("\n") == 1


class OneCat:
    """Stands in for a trained detector: finds one cat in every image, in its upper left corner."""

    info = DatasetInfo("things", (3, 90), ("cat", "dog"))
    class_names = info.category_names

    def __call__(self, image: np.ndarray) -> Detections:
        mask = np.zeros((1, *image.shape[:2]), bool)
        mask[:, 2:12, 3:13] = True
        return Detections(np.float32([[3, 2, 13, 12]]), np.float32([0.75]), np.array([0]), mask)


@pytest.fixture
def one_cat(monkeypatch):
    monkeypatch.setattr("mrcnn_jax.inference.detector.load", lambda directory: OneCat())


def test_predict_leaves_pictures_and_results(mrcnn, one_cat):
    files = [photograph("a.png"), photograph("folder/b.jpg", 40, 30)]
    status, out, err = mrcnn("predict", "run", files[0], "folder")
    assert status == 0 and err == "" and "2 detections in 2 images" in out
    results = json.loads(Path("predictions/results.json").read_text())
    assert [(entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]) for entry in results] == [(i, 3, [3, 2, 10, 10], 0.75) for i in (1, 2)]
    assert json.loads(Path("predictions/images.json").read_text()) == [
        {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}, {"id": 2, "file_name": "folder/b.jpg", "height": 40, "width": 30},
    ]  # fmt: skip
    assert sorted(path.name for path in Path("predictions").glob("*.png")) == ["0001_a.png", "0002_b.png"]


def test_predict_without_masks_and_with_keypoints(mrcnn, monkeypatch):
    class CatPose(OneCat):
        info = OneCat.info._replace(keypoint_names=("nose", "tail"), keypoint_flip=(0, 1), skeleton=((0, 1),), keypoint_classes=(0,))

        def __call__(self, image: np.ndarray) -> Detections:
            return super().__call__(image)._replace(masks=None, keypoints=np.float32([[[4, 3, 0.9], [12, 11, 0.8]]]))

    monkeypatch.setattr("mrcnn_jax.inference.detector.load", lambda directory: CatPose())
    status, _, err = mrcnn("predict", "run", photograph("a.png"))
    assert status == 0 and err == ""
    (entry,) = json.loads(Path("predictions/results.json").read_text())
    assert entry["keypoints"] == pytest.approx([4, 3, 0.9, 12, 11, 0.8]) and "segmentation" not in entry
    posed = read_image("predictions/0001_a.png")
    monkeypatch.setattr(CatPose, "info", CatPose.info._replace(skeleton=()))
    assert mrcnn("predict", "run", "a.png")[0] == 0
    assert not np.array_equal(read_image("predictions/0001_a.png"), posed)  # the line from nose to tail is gone


def test_unreadable_images_do_not_cost_the_results_of_the_others(mrcnn, one_cat):
    files = [photograph("a.png"), Path("b.png"), photograph("c.png"), Path("d.png")]
    files[1].write_text("no image")
    status, out, err = mrcnn("predict", "run", *files[:3])
    assert status == 2 and "2 detections in 2 images" in out
    assert err.startswith("mrcnn: cannot read image b.png: ") and err.count("\n") == 1
    assert [entry["image_id"] for entry in json.loads(Path("predictions/results.json").read_text())] == [1, 3]
    images = json.loads(Path("predictions/images.json").read_text())
    assert [(image["id"], image["file_name"]) for image in images] == [(1, "a.png"), (3, "c.png")]
    files[3].write_bytes(b"")
    status, _, err = mrcnn("predict", "run", *files)
    assert status == 2 and err.startswith("mrcnn: 2 of 4 images cannot be read; the first: cannot read image b.png: ") and err.count("\n") == 1


def test_evaluation_needs_a_fitting_data_set(mrcnn, refused, run):
    for arguments, name in (((), "data/gone"), (("--dataset", "none"), "none")):
        assert refused("evaluate", run, *arguments) == f"{Path(name).absolute()} is not a prepared data set: prepare one there first."
    coco_folder()
    assert mrcnn("dataset", "pets")[0] == 0
    assert refused("evaluate", run, "--dataset", "data/pets", "--split", "test") == "data/pets has no split 'test', only train."
    sentence = refused("evaluate", run, "--dataset", "data/pets", "--split", "train")
    assert sentence.endswith("data/pets has classes (id and name) that run does not know: 7 owl")


def test_evaluation_needs_as_many_keypoints_as_are_predicted(mrcnn, refused, monkeypatch):
    coco_folder()
    mrcnn("dataset", "pets")
    info = records.open_dataset("data/pets", "train").info._replace(keypoint_names=("nose", "tail"))
    experiment = SimpleNamespace(data=DataConfig(dataset="data/pets"), model=SimpleNamespace(tasks=("boxes", "keypoints")))
    monkeypatch.setattr("mrcnn_jax.inference.detector.load", lambda directory: SimpleNamespace(experiment=experiment, info=info))
    assert refused("evaluate", "run", "--split", "train").endswith("data/pets has 0 keypoints, but run predicts 2")


def test_a_checkpoint_of_another_version_is_named(refused, monkeypatch):
    import mrcnn_jax.checkpoint

    monkeypatch.setattr(mrcnn_jax.checkpoint, "to_dict", lambda experiment: {"train": {"epochs": 5}})
    checkpoints = Checkpoints("old/checkpoints")
    checkpoints.save(5, {"params": {"kernel": np.zeros(2)}, "model_state": {}}, 10, Experiment(), DatasetInfo("things", (1,), ("cat",)))
    checkpoints.close()
    photograph("a.png")
    sentence = refused("predict", "old", "a.png")
    assert sentence.startswith("checkpoint ") and "old/checkpoints/5 does not describe an experiment of this version: " in sentence
    assert sentence.endswith("epochs @ experiment.train")


# ---- preparing a data set


def coco_folder(**changes) -> Path:
    """pets/: three images of noise and six annotations, two of them bad and one mended. ``changes`` replace lists of the file."""
    for id_ in (1, 2, 3):
        photograph(f"pets/images/{id_}.jpg")
    good = {"image_id": 1, "category_id": 3, "bbox": [4, 4, 10, 8], "area": 80, "iscrowd": 0, "segmentation": [[4, 4, 14, 4, 14, 12, 4, 12]]}
    content = {
        "images": [{"id": id_, "file_name": f"{id_}.jpg", "height": HEIGHT, "width": WIDTH} for id_ in (1, 2, 3)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 7, "name": "owl"}],
        "annotations": [
            good | {"id": 11},
            good | {"id": 12, "category_id": 90, "image_id": 2},
            good | {"id": 13, "category_id": 90, "iscrowd": 1},
            good | {"id": 14, "bbox": [4, 4, 0, 8]},
            good | {"id": 15, "bbox": [400, 4, 10, 8]},
            {key: value for key, value in good.items() if key != "area"} | {"id": 16},
        ],
    }
    Path("pets/annotations").mkdir(exist_ok=True)
    Path("pets/annotations/all.json").write_text(json.dumps(content | changes))
    return Path("pets")


def rows(out: str) -> dict[str, list[str]]:
    """The rows of the tables in a text, by their first cell."""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    return {first: rest for first, *rest in cells}


def test_dataset_prepares_reports_counts_and_draws(mrcnn):
    status, out, err = mrcnn("dataset", coco_folder(), "--draw", "sheets/pets.png")
    assert status == 0 and "Traceback" not in err
    assert "train: 3 images, 4 of 6 annotations kept" in out
    assert "left out: 1 x box without a positive, finite width and height (annotation 14)" in out
    assert "left out: 1 x box wholly outside the image (annotation 15)" in out
    assert "mended: 1 x area derived from the mask or the box (annotation 16)" in out
    table = rows(out)
    assert table["images"] == ["3"] and table["objects"] == ["4"] and table["crowd"] == ["1"] and table["images without objects"] == ["1"]
    assert table["3"] == ["cat", "2"] and table["90"] == ["dog", "2"] and table["7"] == ["owl", "0"]
    assert out.endswith("Some of its images are drawn in sheets/pets.png.\nReady: --data.dataset data/pets\n")
    source = records.open_dataset("data/pets", "train")
    assert [record.objects.ids.tolist() for record in source] == [[11, 13, 16], [12], []]
    sheet = read_image("sheets/pets.png")
    assert min(sheet.shape[:2]) > HEIGHT and sheet.std() > 10
    assert sorted(path.name for path in Path().iterdir()) == ["data", "pets", "sheets"]


def test_dataset_shows_what_a_prepared_set_holds(mrcnn):
    made = mrcnn("dataset", coco_folder(), "--out", "here")
    before = listing()
    status, out, err = mrcnn("dataset", "here")
    assert status == 0 and err == "" and listing() == before
    assert rows(out) == rows(made[1]) and out.endswith("Ready: --data.dataset here\n")


def test_dataset_overwrites_only_when_told_to(mrcnn, refused):
    mrcnn("dataset", coco_folder())
    sentence = refused("dataset", "pets")
    assert sentence.endswith("data/pets exists already: choose another name, or overwrite it if it is a prepared set.")
    coco_folder(annotations=[])
    status, out, _ = mrcnn("dataset", "pets", "--overwrite")
    assert status == 0 and rows(out)["objects"] == ["0"]
    refusal = refused("dataset", "pets", "--out", "pets/images", "--overwrite")
    assert refusal.endswith("pets/images exists and is not a prepared data set, so it is not overwritten.")


def test_dataset_takes_splits_by_name_or_number(mrcnn, refused):
    coco_folder()
    status, out, _ = mrcnn("dataset", "pets", "--validation-images", "1", "--out", "held")
    assert status == 0 and rows(out)["images"] == ["2", "1"] and records.splits("held") == ("train", "validation")
    both = ("--train", "pets/images", "pets/annotations/all.json", "--validation", "pets/images", "pets/annotations/all.json")
    status, out, _ = mrcnn("dataset", "pets", "--out", "both", *both)
    assert status == 0 and rows(out)["images"] == ["3", "3"]
    assert refused("dataset", "pets", *both[3:]) == "--validation needs --train IMAGES ANNOTATIONS beside it"
    assert refused("dataset", "pets", "--validation-images", "3").endswith("all.json: none of its 3 images is left for this split.")


def test_dataset_prefers_keypoints_when_told_to(mrcnn):
    content = json.loads((coco_folder() / "annotations/all.json").read_text())
    Path("pets/annotations/all.json").rename("pets/annotations/instances_train.json")
    content["categories"] = [category | {"keypoints": ["nose", "left_ear", "right_ear"]} for category in content["categories"]]
    content["annotations"][0]["keypoints"] = [5, 5, 2, 0, 0, 0, 9, 9, 1]
    Path("pets/annotations/person_keypoints_train.json").write_text(json.dumps(content))
    assert "with keypoints" not in mrcnn("dataset", "pets", "--out", "instances")[1]
    status, out, _ = mrcnn("dataset", "pets", "--keypoints")
    assert status == 0 and rows(out)["with keypoints (of 3)"] == ["1"]
    assert records.open_dataset("data/pets", "train").info.keypoint_flip == (0, 2, 1)


# ---- Cityscapes


def test_dataset_recognises_cityscapes(mrcnn, refused):
    tiny_cityscapes.write(Path("cityscapes"))
    status, out, err = mrcnn("dataset", "cityscapes", "--draw", "sheet.png")
    assert status == 0 and "Traceback" not in err
    assert "train: 3 images, 1 of them without objects" in out and "  car: 1 instances, 1 groups" in out
    table = rows(out)
    assert table["images"] == ["3", "3"] and table["crowd"] == ["2", "1"] and table["24"] == ["person", "2", "2"]
    assert out.endswith("Some of its images are drawn in sheet.png.\nReady: --data.dataset data/cityscapes\n")
    assert read_image("sheet.png").std() > 10
    assert refused("dataset", "cityscapes").endswith("data/cityscapes exists already: choose another name, or overwrite it if it is a prepared set.")
    assert mrcnn("dataset", "cityscapes", "--overwrite")[0] == 0


def test_options_of_coco_mean_nothing_to_cityscapes(mrcnn, refused):
    tiny_cityscapes.write(Path("cityscapes"))
    for options in (("--validation-images", "2"), ("--keypoints",)):
        sentence = "cityscapes is laid out like Cityscapes, where --validation-images and --keypoints mean nothing"
        assert refused("dataset", "cityscapes", *options) == sentence
    coco_folder()  # but annotations in COCO's format are taken where they are named
    status, out, _ = mrcnn("dataset", "cityscapes", "--train", "pets/images", "pets/annotations/all.json")
    assert status == 0 and rows(out)["images"] == ["3"]


def test_a_cityscapes_without_annotations_is_named(refused):
    tiny_cityscapes.write(Path("cityscapes"))
    Path("cityscapes/gtFine").rename("elsewhere")
    assert refused("dataset", "cityscapes") == "cityscapes has no folder gtFine: Cityscapes' annotations, gtFine_trainvaltest, belong there."


@pytest.fixture
def trained_on_cityscapes(mrcnn, monkeypatch):
    """A prepared Cityscapes, and in place of a run a detector that finds one person perfectly; ``tasks`` may be changed."""
    tiny_cityscapes.write(Path("cityscapes"))
    mrcnn("dataset", "cityscapes")
    source = records.open_dataset("data/cityscapes", "validation")
    encoded = coco_mask.encode(np.asfortranarray(tiny_cityscapes.instance_ids("val/munster/munster_000000_000019") == 24005, np.uint8))
    mask = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    results = [{"image_id": 2, "category_id": 24, "score": 0.75, "bbox": [30, 20, 20, 36], "segmentation": mask}]
    experiment = SimpleNamespace(
        data=DataConfig(dataset="data/cityscapes"), evaluation=SimpleNamespace(picture_score=0.5), model=SimpleNamespace(tasks=("boxes", "masks"))
    )
    detector = SimpleNamespace(experiment=experiment, info=source.info, class_names=source.info.category_names)
    monkeypatch.setattr("mrcnn_jax.inference.detector.load", lambda directory: detector)
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate", lambda detector, source, progress: ({"bbox": {"AP": 12.5}}, results))
    return experiment


def test_evaluate_adds_the_official_figures_of_cityscapes(mrcnn, trained_on_cityscapes):
    pytest.importorskip("cityscapesscripts")
    status, out, err = mrcnn("evaluate", "run", "--cityscapes", "cityscapes", "--pictures", "0")
    assert status == 0 and err == ""
    metrics = json.loads(Path("run/evaluation/metrics.json").read_text())
    assert metrics["bbox"] == {"AP": 12.5}
    assert metrics["cityscapes"]["AP"] == metrics["cityscapes"]["AP50"] == pytest.approx(100 / 3)  # persons, but neither riders nor cars
    assert metrics["cityscapes"]["per_class"]["person"] == {"AP": pytest.approx(100), "AP50": pytest.approx(100)}
    assert metrics["cityscapes"]["per_class"]["bus"] == {"AP": None, "AP50": None}
    table = rows(out)
    assert table["person"] == ["100.0", "100.0"] and table["bus"] == ["-", "-"] and table["all"] == ["33.3", "33.3"] and table["AP"] == ["12.5"]
    assert mrcnn("evaluate", "run", "--pictures", "0")[0] == 0
    assert list(json.loads(Path("run/evaluation/metrics.json").read_text())) == ["bbox"]


def test_what_the_figures_of_cityscapes_need_is_asked_for_first(refused, trained_on_cityscapes, monkeypatch):
    monkeypatch.setattr("mrcnn_jax.inference.evaluate.evaluate", None)  # nothing may come this far
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
        sentence = "Cityscapes' AP is computed by cityscapesscripts, which is not installed: install mrcnn_jax[cityscapes]."
        assert refused("evaluate", "run", "--cityscapes", "cityscapes") == sentence
    monkeypatch.setattr("mrcnn_jax.evaluation.cityscapes._official_scripts", lambda: None)
    name = "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_instanceIds.png"
    assert refused("evaluate", "run", "--cityscapes", "nowhere") == f"nowhere/{name}: there is no such file."
    trained_on_cityscapes.model.tasks = ("boxes",)
    assert refused("evaluate", "run", "--cityscapes", "cityscapes") == "run predicts no masks, but masks are what Cityscapes scores"


# ---- what is wrong with annotations and images


FILE = "pets/annotations/all.json"
BOX = {"id": 11, "image_id": 1, "category_id": 3, "bbox": [4, 4, 10, 8]}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"annotations": [BOX | {"category_id": 5}]}, f"{FILE}: annotation 11 has category_id 5, which is not listed."),
        ({"annotations": [BOX | {"image_id": 4}]}, f"{FILE}: annotation 11 has image_id 4, which is not listed."),
        ({"annotations": None}, f"{FILE} has no list 'annotations': a COCO file has images, annotations and categories."),
        ({"images": []}, f"{FILE}: it lists no image, but needs at least one."),
        ({"images": [{"id": 1, "file_name": "gone.jpg"}], "annotations": []}, f"{FILE}: 1 of 1 images are missing from pets/images (gone.jpg)."),
        ({"images": [{"id": 1, "file_name": "1.jpg", "height": 5, "width": 5}], "annotations": []},
         f"{FILE}: image 1 is said to be 5x5 (width x height), but pets/images/1.jpg is 36x24 (as stored, without EXIF rotation)."),
    ],
)  # fmt: skip
def test_an_annotation_file_that_cannot_be_trusted(refused_with_bar, changes, sentence):
    coco_folder(**changes)
    assert refused_with_bar("dataset", "pets") == sentence


@pytest.fixture
def refused_with_bar(mrcnn):
    """As ``refused``, but a progress bar may stand on stderr before the sentence, and the folder for prepared sets may have been made."""

    def call(*arguments) -> str:
        before = listing()
        status, out, err = mrcnn(*arguments)
        assert status == 2 and out == "" and "Traceback" not in err
        assert {path: content for path, content in listing().items() if path != "data"} == before
        *_, sentence = err.splitlines()
        assert sentence.startswith("mrcnn: ") and err.count("mrcnn: ") == 1
        return sentence[len("mrcnn: ") :]

    return call


@pytest.mark.parametrize("content", ["", "{", '{"images": [],}'])
def test_malformed_annotations_are_named(refused, content):
    coco_folder()
    Path(FILE).write_text(content)
    assert refused("dataset", "pets").startswith(f"{FILE} is not valid JSON: ")


def test_an_unreadable_image_of_a_data_set_is_named_and_nothing_is_written(refused_with_bar):
    coco_folder()
    data = Path("pets/images/3.jpg").read_bytes()  # the last: two records are already on their way to disk
    Path("pets/images/3.jpg").write_bytes(data[: len(data) // 2])
    assert refused_with_bar("dataset", "pets") == "pets/images/3.jpg is truncated or damaged: it cannot be decoded."
    assert list(Path("data").iterdir()) == []


def test_a_picture_that_cannot_be_written_is_named(mrcnn):
    mrcnn("dataset", coco_folder())
    status, _, err = mrcnn("dataset", "data/pets", "--draw", "sheet.nonsense")
    assert status == 2 and err.startswith("mrcnn: cannot write image sheet.nonsense: ") and err.count("\n") == 1
    assert not Path("sheet.nonsense").exists()


# ---- as a program


def program(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess:
    package = str(Path(cli.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "mrcnn_jax", *arguments]
    return subprocess.run(command, check=False, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=120)


def test_as_a_program():
    shown = program("--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: mrcnn COMMAND") and shown.stderr == ""
    failed = program("dataset", "none")
    assert failed.returncode == 2 and failed.stderr == "mrcnn: none is not a folder.\n" and failed.stdout == ""
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="pipes break in this way on POSIX systems")
@pytest.mark.parametrize("arguments", [("--help",), ("dataset", "--help")])
def test_a_reader_that_has_seen_enough_is_no_error_to_speak_of(arguments):
    """As in `mrcnn --help | head`: the reading end of the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    shown = program(*arguments, stdout=writing)
    os.close(writing)
    assert shown.returncode == 1 and shown.stderr == ""


def test_every_option_in_the_readme_exists(mrcnn, capsys):
    def options_in(text: str) -> set[str]:
        return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text))

    readme = options_in((REPOSITORY / "README.md").read_text())
    helps = (mrcnn(*command, "--help")[1] for command in (["train", "demo"], *([command] for command in cli.COMMANDS if command != "train")))
    of_programs = options_in(" ".join(helps))
    for other in (roi_ops, tpu_compile, tables):
        with pytest.raises(SystemExit):
            other.main(["--help"])
    assert len(readme) > 20 and readme <= of_programs | options_in(capsys.readouterr().out)
