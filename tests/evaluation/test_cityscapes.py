"""The official AP of Cityscapes: what perfect, worse and no detections get, and what is refused."""

import copy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_cityscapes as tiny
from PIL import Image
from pycocotools import mask as coco_mask

from mrcnn_jax.data import dataset as records
from mrcnn_jax.data.dataset_writer import write_dataset
from mrcnn_jax.data.formats import cityscapes
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation import cityscapes as cityscapes_evaluation
from mrcnn_jax.evaluation.cityscapes import CityscapesEvaluator, Frame, cityscapes_table, write_results

# pycocotools 2.0.11 itself asks NumPy 2 for a copy in a deprecated way when it decodes a mask.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NAMES = ("frankfurt_000000_000294", "munster_000000_000019")
FRAMES = {image_id: Frame(name, tiny.HEIGHT, tiny.WIDTH) for image_id, name in enumerate(NAMES, start=1)}
VAL = {image_id: tiny.instance_ids(scene) for image_id, scene in enumerate(tiny.scenes("val"), start=1)}


@pytest.fixture
def root(tmp_path):
    return tiny.write(tmp_path / "cityscapes")


@pytest.fixture
def source(root):
    cityscapes.prepare(root, root.parent / "prepared", progress=False)
    return records.open_dataset(root.parent / "prepared", "validation")


@pytest.fixture
def evaluator(source, root):
    pytest.importorskip("cityscapesscripts")
    return CityscapesEvaluator(source, root)


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return encoded | {"counts": encoded["counts"].decode()}


def result(mask: np.ndarray, label: int, image_id: int = 1, score: float = 0.9) -> dict:
    entry = {"image_id": image_id, "category_id": label, "score": score, "bbox": [0, 0, 1, 1]}
    return entry | {"segmentation": rle(mask)}


def perfect() -> list[dict]:
    """Every object of the validation split, but not the groups."""
    values = [(image_id, int(value)) for image_id, ids in VAL.items() for value in np.unique(ids)]
    values = [(image_id, value) for image_id, value in values if value >= 1000]
    return [result(VAL[image_id] == value, value // 1000, image_id) for image_id, value in values]


def ap(metrics: dict) -> dict[str, float | None]:
    return {name: of_class["AP"] for name, of_class in metrics["per_class"].items()}


# ---- metrics


def test_perfect_detections_score_100_percent(evaluator, capfd):
    metrics = evaluator(perfect())
    assert metrics["AP"] == metrics["AP50"] == pytest.approx(100)
    # The train has 99 pixels, too few to count. The other classes do not occur.
    defined = {name: value for name, value in ap(metrics).items() if value is not None}
    assert defined == pytest.approx({"person": 100, "rider": 100, "car": 100})
    assert list(metrics["per_class"]) == list(cityscapes.LABELS)
    assert capfd.readouterr() == ("", "")


def test_metrics_equal_those_of_the_package(evaluator, tmp_path, monkeypatch):
    rough = VAL[2] == 25005
    rough[15:] = False
    results = [
        *perfect()[:-1], result(rough, 25, 2, 0.4), result(VAL[1] == tiny.ROAD, 26, score=0.95),
        result(VAL[2] == tiny.ROAD, 24, 2),
    ]  # fmt: skip
    write_results(tmp_path / "results", results, evaluator.frames)
    scripts, settings = evaluator._scripts, copy.copy(evaluator._scripts.args)
    settings.predictionPath, settings.gtInstancesFile = str(tmp_path / "results"), str(tmp_path / "none")
    settings.JSONOutput = False
    monkeypatch.setattr(scripts, "writeDict2JSON", lambda *arguments: None)  # fails with NumPy 2.4
    texts = [str(tmp_path / f"results/{frame.name}.txt") for frame in evaluator.frames.values()]
    truth = [str(path) for path in evaluator.truth.values()]
    averages = scripts.evaluateImgLists(texts, truth, settings)["averages"]
    metrics = evaluator(results)
    assert 0 < metrics["AP"] < metrics["AP50"] < 100
    assert (metrics["AP"], metrics["AP50"]) == (100 * averages["allAp"], 100 * averages["allAp50%"])
    for name in ("person", "rider", "car"):
        of_class = averages["classes"][name]
        assert metrics["per_class"][name] == {"AP": 100 * of_class["ap"], "AP50": 100 * of_class["ap50%"]}


def test_no_files_are_left_behind(evaluator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    evaluator(perfect())
    assert sorted(tmp_path.rglob("*")) == before


def test_missed_objects_and_false_positives_lower_ap(evaluator):
    one_car_missed = [entry for entry in perfect() if entry["category_id"] != 26]
    one_car_missed.append(result(VAL[1] == 26002, 26))
    metrics = evaluator(one_car_missed)
    assert ap(metrics)["car"] == pytest.approx(50) and ap(metrics)["person"] == pytest.approx(100)
    assert metrics["AP"] == metrics["AP50"] == pytest.approx((50 + 100 + 100) / 3)
    elsewhere = np.zeros((tiny.HEIGHT, tiny.WIDTH), bool)
    elsewhere[50:58, 60:100] = True
    alarmed = evaluator([*perfect(), result(elsewhere, 24, score=0.99)])
    assert 0 < ap(alarmed)["person"] < 100 and ap(alarmed)["car"] == pytest.approx(100)


def test_rough_masks_count_at_low_thresholds_only(evaluator):
    """The rider's 18 x 20 pixels cut to 13 rows: IoU 0.72, above 0.5 to 0.7 and below 0.75 to 0.95."""
    rough = VAL[2] == 25005
    rough[15:] = False
    others = [entry for entry in perfect() if entry["category_id"] != 25]
    metrics = evaluator([*others, result(rough, 25, image_id=2)])
    assert metrics["per_class"]["rider"] == {"AP": pytest.approx(50), "AP50": pytest.approx(100)}


def test_detections_in_groups_and_void_areas_are_ignored(evaluator):
    void = VAL[2] == 0
    ignored = [result(VAL[1] == 24, 24, score=0.99), result(void, 24, image_id=2, score=0.99)]
    metrics = evaluator(perfect() + ignored)
    assert ap(metrics)["person"] == pytest.approx(100)
    rider_in_a_group_of_persons = result(VAL[1] == 24, 25, score=0.99)
    assert ap(evaluator([*perfect(), rider_in_a_group_of_persons]))["rider"] < 100


def test_no_detections_score_zero(evaluator):
    metrics = evaluator([])
    assert metrics["AP"] == metrics["AP50"] == 0
    assert ap(metrics) == dict.fromkeys(cityscapes.LABELS) | {"person": 0, "rider": 0, "car": 0}


def test_metrics_without_objects_are_undefined(root, tmp_path):
    pytest.importorskip("cityscapesscripts")
    for scene in tiny.scenes("val"):
        road = np.full((tiny.HEIGHT, tiny.WIDTH), tiny.ROAD, np.uint16)
        cv2.imwrite(str(tiny.truth_path(root, scene)), road)
    cityscapes.prepare(root, tmp_path / "empty", progress=False)
    metrics = CityscapesEvaluator(records.open_dataset(tmp_path / "empty", "validation"), root)([])
    undefined = {"AP": None, "AP50": None}
    assert metrics == undefined | {"per_class": dict.fromkeys(cityscapes.LABELS, undefined)}


# ---- the results format


def test_results_are_written_in_the_server_format(tmp_path):
    masks = [VAL[1] == 26001, VAL[1] == 26002, VAL[2] == 24005]
    results = [result(masks[0], 26), result(masks[2], 24, 2, 0.125), result(masks[1], 26, score=0.5)]
    write_results(tmp_path, results, FRAMES | {3: Frame("munster_x", 9, 9)})
    texts = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    assert texts == {
        "frankfurt_000000_000294.txt": "masks/1_0.png 26 0.9\nmasks/1_1.png 26 0.5\n",
        "munster_000000_000019.txt": "masks/2_0.png 24 0.125\n",
        "munster_x.txt": "",
    }
    for name, mask in zip(("1_0", "1_1", "2_0"), masks, strict=True):
        written = np.array(Image.open(tmp_path / f"masks/{name}.png").convert("L"))
        np.testing.assert_array_equal(written != 0, mask)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"image_id": 7}, "results entry 1 has image_id 7, which is none of the 2 images"),
        ({"category_id": 29},
         "results entry 1 has category_id 29, but Cityscapes evaluates 24, 25, 26, 27, 28, 31, 32, 33"),
        ({"segmentation": None}, "results entry 1 has no mask, but Cityscapes evaluates masks"),
        ({"segmentation": rle(np.ones((4, 8)))},
         "results entry 1 has a mask of 8x4 (width x height), but its image is 128x64"),
    ],
)  # fmt: skip
def test_unusable_results_are_refused(tmp_path, changes, sentence):
    good = result(VAL[1] == 26001, 26)
    with pytest.raises(InputError) as error:
        write_results(tmp_path / "out", [good, good | changes], FRAMES)
    assert str(error.value) == sentence and not (tmp_path / "out").exists()


def test_table_holds_every_class():
    of_class = {"AP": 12.34, "AP50": None}
    table = cityscapes_table({"AP": 50.0, "AP50": 75.0, "per_class": {"rider": of_class}})
    cells = [list(column.cells) for column in table.columns]
    assert cells == [["rider", "all"], ["12.3", "50.0"], ["-", "75.0"]]


# ---- what is refused


def test_missing_package_is_named(source, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling", None)
    with pytest.raises(InputError) as error:
        CityscapesEvaluator(source, root)
    sentence = "Cityscapes' AP is computed by cityscapesscripts, which is not installed: install "
    assert str(error.value) == sentence + "mrcnn_jax[cityscapes]"


@pytest.fixture
def any_scripts(monkeypatch):
    """The checks before the evaluation need no cityscapesscripts."""
    monkeypatch.setattr(cityscapes_evaluation, "_official_scripts", lambda: None)


def test_other_data_sets_are_refused(source, root, tmp_path, any_scripts):
    others = source.info._replace(category_ids=tuple(range(1, 9)))
    write_dataset(tmp_path / "others", others, {"train": list(source)})
    message = "others is not a set of Cityscapes: it has the class 'bicycle' with id 8$"
    with pytest.raises(InputError, match=message):
        CityscapesEvaluator(records.open_dataset(tmp_path / "others", "train"), root)


def test_ground_truth_of_another_size_is_refused(source, root, any_scripts):
    path = tiny.truth_path(root, tiny.scenes("val")[1])
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint16))
    image = f"leftImg8bit/{tiny.scenes('val')[1]}_leftImg8bit.png"
    with pytest.raises(InputError) as error:
        CityscapesEvaluator(source, root)
    assert str(error.value) == f"{path} is 64x32 (width x height), but {image} is 128x64"
    path.unlink()
    with pytest.raises(InputError) as error:
        CityscapesEvaluator(source, root)
    assert str(error.value) == f"{path}: there is no such file"


def test_unknown_labels_are_named(evaluator, root):
    path = tiny.truth_path(root, tiny.scenes("val")[0])
    cv2.imwrite(str(path), np.full((tiny.HEIGHT, tiny.WIDTH), 41000, np.uint16))
    with pytest.raises(InputError) as error:
        evaluator([])
    assert str(error.value) == f"{path} holds the label 41, which Cityscapes does not know"


def test_errors_of_the_package_are_reported(evaluator, monkeypatch):
    def gives_up(*arguments):
        evaluator._scripts.printError("the moon is full")

    monkeypatch.setattr(evaluator._scripts, "matchGtWithPreds", gives_up)
    with pytest.raises(InputError, match="^cityscapesscripts failed: ERROR: the moon is full$"):
        evaluator([])


def test_official_package_is_used_unchanged(evaluator):
    assert Path(evaluator._scripts.__file__).name == "evalInstanceLevelSemanticLabeling.py"
    assert evaluator._scripts.args.predictionPath is None  # its own settings stay as they were
