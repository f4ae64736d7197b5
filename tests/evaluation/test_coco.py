"""The COCO metrics: against published numbers, pycocotools' summary, and cases counted by hand."""

import contextlib
import copy
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDEN
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from square_objects import INFO, detections, ground_truth

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import evaluate_coco, evaluate_files, metrics_table
from mrcnn_jax.run_length_masks import encode_masks

BOX_METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
KEYPOINT_METRICS = ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "coco_eval.json").read_text())


def test_metrics_equal_those_published_with_coco():
    if not os.environ.get("MRCNN_TEST_DATA"):
        pytest.skip("MRCNN_TEST_DATA is unset")
    folder = Path(os.environ["MRCNN_TEST_DATA"]) / "coco_eval_fixture"
    published = {}
    for line in (folder / "val2014_fake_eval_res.txt").read_text().splitlines():
        if line.startswith("type="):
            published[line.removeprefix("type=")] = of_kind = []
        elif line.startswith(" Average"):
            of_kind.append(float(line.split("=")[-1]))
    for kind in ("bbox", "segm"):
        results = folder / f"instances_val2014_fake{kind}100_results.json"
        metrics = evaluate_files(folder / "instances_val2014_100.json", results, [kind])
        assert list(metrics) == [kind] and list(metrics[kind]) == BOX_METRICS
        assert [round(value / 100, 3) for value in metrics[kind].values()] == published[kind]


def test_metrics_equal_the_golden_summary(golden):
    metrics = evaluate_coco(golden["gt"], golden["dets"], ("bbox", "segm", "keypoints"))
    assert list(metrics["keypoints"]) == KEYPOINT_METRICS
    for kind, of_kind in metrics.items():
        assert list(of_kind) == (KEYPOINT_METRICS if kind == "keypoints" else BOX_METRICS)
        assert all(type(value) is float for value in of_kind.values())
        fractions = [value / 100 for value in of_kind.values()]
        np.testing.assert_allclose(fractions, golden["stats"][kind], atol=1e-6)


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_metrics_per_class_equal_pycocotools(golden, kind):
    with np.load(GOLDEN / f"coco_{kind}_precision.npz") as arrays:
        precision = arrays["precision"][:, :, :, 0, -1]
    per_class = evaluate_coco(golden["gt"], golden["dets"], [kind], per_class=True)[kind]["per_class"]
    assert list(per_class) == ["c1", "c2", "c3"]
    for position, value in enumerate(per_class.values()):
        defined = precision[:, :, position][precision[:, :, position] > -1]
        assert value == (pytest.approx(100 * defined.mean(), abs=1e-4) if defined.size else None)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_metrics_equal_the_summary_of_pycocotools(golden):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(golden["gt"])
        truth.createIndex()
        keys = ("image_id", "category_id", "score", "segmentation")
        found = truth.loadRes([{key: entry[key] for key in keys} for entry in golden["dets"]])
        evaluator = COCOeval(truth, found, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    metrics = evaluate_coco(golden["gt"], golden["dets"], ["segm"])["segm"]
    np.testing.assert_allclose([value / 100 for value in metrics.values()], evaluator.stats, atol=1e-12)


def test_arguments_are_not_changed_and_nothing_is_printed(golden, capsys):
    truth, results = copy.deepcopy(golden["gt"]), copy.deepcopy(golden["dets"])
    evaluate_coco(truth, results, ("bbox", "segm", "keypoints"))
    assert truth == golden["gt"] and results == golden["dets"]
    assert capsys.readouterr() == ("", "")


def test_perfect_detections_score_100():
    truth = ground_truth((7, 3, 5, 5, 20), (7, 17, 30, 10, 40), (9, 3, 0, 0, 50))
    results = detections((0, 0.9, 5, 5, 20), (1, 0.8, 30, 10, 40)).to_coco(7, INFO)
    results += detections((0, 0.7, 0, 0, 50)).to_coco(9, INFO)
    metrics = evaluate_coco(truth, json.loads(json.dumps(results)), per_class=True)
    for kind in ("bbox", "segm"):
        of_kind = metrics[kind]
        assert of_kind.pop("per_class") == {"cat": pytest.approx(100), "dog": pytest.approx(100)}
        assert of_kind.pop("APl") is None and of_kind.pop("ARl") is None  # no object is large
        assert of_kind.pop("AR1") == pytest.approx(100)
        assert all(value == pytest.approx(100) for value in of_kind.values())


def test_half_of_the_objects_found_gives_half_the_recall():
    truth = ground_truth((7, 3, 0, 0, 40), (9, 3, 0, 0, 40))
    metrics = evaluate_coco(truth, detections((0, 0.9, 0, 0, 40)).to_coco(7, INFO), ["segm"])["segm"]
    assert metrics["AR100"] == pytest.approx(50)
    assert metrics["AP"] == pytest.approx(100 * 51 / 101)  # precision 1 at the recalls 0, 0.01, ..., 0.5


def test_masks_are_sized_by_their_own_area():
    truth = ground_truth((7, 3, 0, 0, 30))  # 900 pixels: small
    entry = detections((0, 0.9, 0, 0, 30)).to_coco(7, INFO)[0] | {"bbox": [0, 0, 79, 59]}
    false_alarm = detections((0, 0.95, 40, 20, 35)).to_coco(7, INFO)[0] | {"bbox": [0, 0, 5, 5]}
    metrics = evaluate_coco(truth, [entry, false_alarm], ["segm"])["segm"]
    assert metrics["APs"] == pytest.approx(100)  # the false alarm, 1225 pixels, is not small
    assert metrics["AP"] == pytest.approx(50)


def test_area_beyond_float64_is_replaced_by_the_box():
    truth = ground_truth((7, 3, 0, 0, 30))
    truth["annotations"][0]["area"] = 10**400
    metrics = evaluate_coco(truth, detections((0, 0.9, 0, 0, 30)).to_coco(7, INFO), ["bbox"])["bbox"]
    assert metrics["APs"] == pytest.approx(100)


@pytest.mark.parametrize("kinds", [("bbox", "segm"), ("keypoints",)])
def test_no_detections_score_zero_or_are_undefined(golden, kinds):
    metrics = evaluate_coco(golden["gt"], [], kinds)
    for of_kind in metrics.values():
        assert set(of_kind.values()) == {0.0}
    assert evaluate_coco(ground_truth(), [], ["segm"])["segm"] == dict.fromkeys(BOX_METRICS)
    assert evaluate_coco({"images": [], "annotations": [], "categories": []}, [])["bbox"]["AP"] is None


def test_max_detections_above_100_count():
    places = [(x, y) for y in range(0, 60, 4) for x in range(0, 80, 4)][:150]
    truth = ground_truth(*[(7, 3, x, y, 3) for x, y in places])
    results = detections(*[(0, 0.9, x, y, 3) for x, y in places]).to_coco(7, INFO)
    metrics = evaluate_coco(truth, results, ["bbox"], max_detections=(500, 30))["bbox"]
    assert [name for name in metrics if name.startswith("AR") and name[2:].isdigit()] == ["AR30", "AR500"]
    assert metrics["AR30"] == pytest.approx(20) and metrics["AR500"] == metrics["AP"] == pytest.approx(100)
    assert evaluate_coco(truth, results, ["bbox"])["bbox"]["AR100"] == pytest.approx(100 * 100 / 150)


def test_ids_zero_and_duplicate_ids_are_matched():
    truth = ground_truth((7, 3, 5, 5, 20), (9, 3, 5, 5, 20))
    for annotation in truth["annotations"]:
        annotation["id"] = 0  # "no match" to pycocotools, and twice the same
        del annotation["iscrowd"], annotation["area"]
    results = [entry for i in (7, 9) for entry in detections((0, 0.9, 5, 5, 20)).to_coco(i, INFO)]
    assert evaluate_coco(truth, results, ["segm"])["segm"]["AP"] == pytest.approx(100)


def with_keypoints(truth, points):
    """Only dogs have keypoints: the same for each object here, all visible."""
    truth["categories"][1]["keypoints"] = [f"k{j}" for j in range(len(points))]
    for annotation in truth["annotations"]:
        if annotation["category_id"] == 17:
            annotation["keypoints"] = [number for x, y in points for number in (x, y, 2)]
    return truth


def test_keypoint_metrics_follow_the_similarity_formula():
    truth = with_keypoints(ground_truth((7, 17, 10, 10, 40), (7, 3, 0, 0, 9)), [(20, 20), (40, 30)])
    dog = {"image_id": 7, "category_id": 17, "score": 0.9, "keypoints": [20 + 4, 20, 1, 40, 30, 1]}
    cat = detections((0, 0.8, 0, 0, 9)).to_coco(7, INFO)[0]  # of a class that needs no keypoints
    # similarity exp(-4^2 / (2 (2 sigma)^2 40^2)) of the first, 1 of the second
    for sigma, similarity in ((0.05, (np.exp(-0.5) + 1) / 2), (0.025, (np.exp(-2) + 1) / 2)):
        sigmas = [sigma, 0.1]
        metrics = evaluate_coco(truth, [dog, cat], ["keypoints"], keypoint_sigmas=sigmas, per_class=True)
        passed = np.sum(similarity >= np.linspace(0.5, 0.95, 10))
        assert passed in (2, 7) and metrics["keypoints"]["AP"] == pytest.approx(10 * passed)
        assert metrics["keypoints"]["per_class"] == {"dog": pytest.approx(10 * passed)}
        assert metrics["keypoints"]["AR"] == pytest.approx(10 * passed)


def test_keypoint_sigmas_must_fit_the_keypoints():
    truth = with_keypoints(ground_truth((7, 17, 10, 10, 40)), [(20, 20), (40, 30)])
    message = "annotation 0 of the ground truth has 2 keypoints, but keypoint_sigmas has 17"
    with pytest.raises(InputError, match=message):
        evaluate_coco(truth, [], ["keypoints"])
    with pytest.raises(InputError, match="but keypoint_sigmas has 3: there must be one for each"):
        evaluate_coco(truth, [], ["keypoints"], keypoint_sigmas=(0.1, 0.1, 0.1))
    entry = {"image_id": 7, "category_id": 17, "score": 0.9, "keypoints": [20, 20, 1]}
    message = 'results entry 0 has an unusable "keypoints": it must hold 6 finite numbers'
    with pytest.raises(InputError, match=message):
        evaluate_coco(truth, [entry], ["keypoints"], keypoint_sigmas=(0.1, 0.1))
    for sigmas in ((), (0.1, 0.0), (0.1, float("nan"))):
        with pytest.raises(InputError, match="keypoint_sigmas must be numbers above 0, one for each"):
            evaluate_coco(truth, [], ["keypoints"], keypoint_sigmas=sigmas)
    assert evaluate_coco(truth, [], ["bbox"], keypoint_sigmas=())["bbox"]["AP"] == 0


def test_proposal_recall_ignores_classes():
    truth = ground_truth((7, 3, 0, 0, 20), (7, 17, 30, 10, 40), (9, 3, 5, 5, 30), (9, 17, 40, 20, 31))
    entries = detections((0, 0.9, 60, 0, 9), (0, 0.8, 0, 0, 20), (0, 0.7, 30, 10, 40)).to_coco(7, INFO)
    entries += detections((1, 0.6, 5, 5, 30)).to_coco(9, INFO)
    for entry in entries:
        del entry["category_id"]
    metrics = evaluate_coco(truth, entries, ["proposals"], per_class=True, proposal_limits=(2, 1, 100))
    metrics = metrics["proposals"]
    expected = {"AR1": 25, "AR2": 50, "AR100": 75, "ARs": 200 / 3, "ARm": 100, "ARl": None}
    assert metrics.pop("ARl") is expected.pop("ARl") and metrics == pytest.approx(expected)
    assert list(metrics) == list(expected)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_proposals_equal_pycocotools_without_categories(golden):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(golden["gt"])
        truth.createIndex()
        keys = ("image_id", "category_id", "score", "bbox")
        found = truth.loadRes([{key: entry[key] for key in keys} for entry in golden["dets"]])
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.useCats = 0
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    metrics = evaluate_coco(golden["gt"], golden["dets"], ["proposals"], proposal_limits=(1, 10, 100))
    metrics = metrics["proposals"]
    np.testing.assert_allclose([value / 100 for value in metrics.values()], evaluator.stats[6:], atol=1e-12)
    names = list(evaluate_coco(golden["gt"], [], ["proposals"])["proposals"])
    assert names == ["AR10", "AR100", "AR1000", "ARs", "ARm", "ARl"]


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("bbox", {"image_id": 8}, "results entry 1 has image_id 8, which is none of the 2 images"),
        ("bbox", {"category_id": 1}, "results entry 1 has category_id 1, which is none of the 2 categories"),
        ("bbox", {"score": float("nan")}, "results entry 1 has score nan"),
        ("bbox", {"score": "0.9"}, "results entry 1 has score '0.9', which is not a finite number"),
        ("bbox", {"bbox": 5}, "it must hold 4 finite numbers"),
        ("bbox", {"bbox": [1, 1, 1e308, 1e308]}, r"it must hold 4 finite numbers, at most 1e\+100"),
        ("bbox", {"bbox": [1, 2, 3]}, 'entry 1 has an unusable "bbox": it must hold 4 finite numbers'),
        ("segm", {"segmentation": [[1, 1, 5, 1]]}, 'unusable "segmentation": polygon with fewer than 3'),
        ("segm", {"segmentation": encode_masks(np.ones((1, 6, 8), bool))[0]}, r"its size is \[6, 8\], but"),
        ("keypoints", {}, 'results entry 0 has no "keypoints", which the evaluation of keypoints needs'),
    ],
)
def test_malformed_results_are_refused(kind, change, message):
    truth = ground_truth((7, 3, 5, 5, 20))
    results = detections((0, 0.9, 5, 5, 20), (1, 0.8, 5, 5, 20)).to_coco(7, INFO)
    results[1] |= change
    with pytest.raises(InputError, match=message):
        evaluate_coco(truth, results, [kind])


def test_mask_of_an_odd_size_is_refused():
    truth = ground_truth((7, 3, 0, 0, 30))
    truth["annotations"][0]["segmentation"] = {"size": [[], [0.0]], "counts": "PP"}
    truth["annotations"].append(ground_truth((7, 3, 0, 0, 30))["annotations"][0] | {"id": 99})
    with pytest.raises(InputError, match='unusable "segmentation"'):
        evaluate_coco(truth, [], ["segm"])


def test_malformed_ground_truth_is_refused():
    with pytest.raises(InputError, match='no "annotations"'):
        evaluate_coco({"images": [], "categories": []}, [])
    truth = ground_truth((7, 3, 5, 5, 20))
    truth["annotations"][0]["segmentation"] = []
    message = "none of the 1 objects of the ground truth has a mask, which segm needs"
    with pytest.raises(InputError, match=message):
        evaluate_coco(truth, [])
    truth["annotations"][0]["keypoints"] = [1, 1, 2] * 5
    with pytest.raises(InputError, match="annotation 0 of the ground truth has 5 keypoints"):
        evaluate_coco(truth, [], ["keypoints"])


@pytest.mark.parametrize(
    "arguments",
    [{"kinds": ["masks"]}, {"max_detections": ()}, {"max_detections": (0, 10)}, {"proposal_limits": (0,)}],
)
def test_unknown_kinds_and_limits_are_refused(arguments):
    with pytest.raises(InputError):
        evaluate_coco(ground_truth(), [], **arguments)


def test_unreadable_files_are_refused(tmp_path):
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    with pytest.raises(InputError, match=f"cannot read {truth}: No such file"):
        evaluate_files(truth, results)
    truth.write_text(json.dumps(ground_truth()))
    results.write_text("[{")
    with pytest.raises(InputError, match=f"{results} is not valid JSON"):
        evaluate_files(truth, results)
    results.write_text("{}")
    with pytest.raises(InputError, match=f"{results} is not a COCO results file"):
        evaluate_files(truth, results)
    with pytest.raises(InputError, match="is not a COCO data set"):
        results.write_text("[]")
        evaluate_files(results, results)


def test_table_holds_every_metric(golden):
    kinds = ("bbox", "segm", "keypoints")
    metrics = evaluate_coco(golden["gt"], golden["dets"], (*kinds, "proposals"), per_class=True)
    metrics["segm"]["APs"] = None
    console = Console(file=io.StringIO(), width=80)
    console.print(metrics_table(metrics))
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.startswith("│")]
    rows = {line[1]: line[3::2] for line in lines}
    assert list(rows) == [*BOX_METRICS, "AR", "AR50", "AR75", "AR1000"]
    assert rows["AP"] == [*(f"{100 * golden['stats'][kind][0]:.1f}" for kind in kinds), "-"]
    assert rows["APs"] == [f"{100 * golden['stats']['bbox'][3]:.1f}", "-", "-", "-"]
