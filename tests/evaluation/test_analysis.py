"""Analysis of an evaluation: errors, curves, confusion, sizes, calibration against cases counted by hand."""

import json

import numpy as np
import pytest
from paths import GOLDEN
from square_objects import INFO, detections, ground_truth, matches_of

from mrcnn_jax.evaluation.analysis.analyze import analyze
from mrcnn_jax.evaluation.analysis.average_precision import class_precisions
from mrcnn_jax.evaluation.analysis.confusion import confusion_matrix
from mrcnn_jax.evaluation.analysis.curves import overall_curve, score_curve
from mrcnn_jax.evaluation.analysis.errors import DETECTION_ERRORS, find_errors, gains
from mrcnn_jax.evaluation.analysis.matches import read_matches
from mrcnn_jax.evaluation.coco import evaluate_coco

CATS = (7, 3, 0, 0, 20), (7, 3, 0, 35, 20), (7, 3, 40, 35, 10)
DOG = 7, 17, 40, 0, 20
FOUND = {
    "correct": (0, 0.9, 0, 0, 20),
    "duplicate": (0, 0.8, 1, 1, 20),
    "classification": (0, 0.7, 40, 0, 20),
    "localisation": (0, 0.6, 8, 35, 20),
    "both": (1, 0.5, 8, 35, 20),
    "background": (1, 0.4, 65, 45, 10),
}
"""One detection of each kind, the first on a cat; the third cat is missed."""


@pytest.fixture(scope="module", params=["bbox", "segm"])
def matches(request):
    results = detections(*FOUND.values()).to_coco(7, INFO)
    return matches_of(ground_truth(*CATS, DOG), results, request.param)


def test_every_detection_has_the_error_that_it_was_made_for(matches):
    errors, scores = find_errors(matches), matches.detections.scores
    for name, (_, score, *_) in FOUND.items():
        kind = errors.kinds[scores == score].item()
        assert kind == (-1 if name == "correct" else DETECTION_ERRORS.index(name)), name
    assert matches.objects.areas[errors.missed].tolist() == [100]


def test_gains_are_those_counted_by_hand(matches):
    gained = gains(matches, find_errors(matches))
    expected = {  # of cats, of dogs; cats reach 1/3 of the recall at precision 1
        "classification": (0, 101),
        "localisation": (33 / 2, 0),  # 2/3 at precision 2/4
        "both": (0, 0),
        "duplicate": (0, 0),
        "background": (0, 0),
        "missed": (51 - 34, 0),
        "false_positives": (0, 0),
        "false_negatives": (101 - 34, 101),
    }
    assert gained.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(gained[name] * 101, values, atol=1e-9, err_msg=name)


def test_a_mended_detection_counts_once_for_each_object():
    near = (0, 0.6, 8, 35, 20), (0, 0.5, 9, 35, 20), (0, 0.4, 8, 36, 20)
    matches = matches_of(ground_truth((7, 3, 0, 35, 20)), detections(*near).to_coco(7, INFO))
    errors = find_errors(matches)
    assert set(errors.kinds) == {DETECTION_ERRORS.index("localisation")} and not errors.missed.any()
    assert gains(matches, errors)["localisation"][0] == pytest.approx(1)  # the others disappear


def test_detections_on_crowds_are_no_errors():
    truth = ground_truth((7, 3, 0, 0, 50), (9, 3, 0, 0, 20))
    truth["annotations"][0]["iscrowd"] = 1
    matches = matches_of(truth, detections((0, 0.9, 5, 5, 20), (0, 0.8, 20, 20, 20)).to_coco(7, INFO))
    errors = find_errors(matches)
    assert (errors.kinds == -1).all() and errors.missed.tolist().count(True) == 1
    assert confusion_matrix(matches, 0.0).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert overall_curve(matches).best() is None


def test_confusion_matrix_counts_objects_and_lone_detections(matches):
    assert confusion_matrix(matches, 0.45).tolist() == [[1, 0, 2], [1, 0, 0], [2, 1, 0]]
    assert confusion_matrix(matches, 0.95).tolist() == [[0, 0, 3], [0, 0, 1], [0, 0, 0]]


def test_the_best_detection_takes_a_confused_object():
    both = (0, 0.6, 40, 0, 20), (0, 0.9, 42, 0, 20)  # cats on one dog
    matches = matches_of(ground_truth(DOG), detections(*both).to_coco(7, INFO))
    assert confusion_matrix(matches, 0.5).tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_score_curve_takes_equal_scores_together():
    curve = score_curve(np.array([0.5, 0.9, 0.5, 0.2]), np.array([True, True, False, True]), 4)
    assert curve.scores.tolist() == [0.9, 0.5, 0.2]
    assert curve.precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4])
    assert curve.recall.tolist() == [1 / 4, 2 / 4, 3 / 4]
    assert curve.f1.tolist() == pytest.approx([2 / 5, 4 / 7, 6 / 8])
    assert curve.best() == {"scores": 0.2, "precision": 0.75, "recall": 0.75, "f1": 0.75}
    at = curve.at(np.array([0.0, 0.5, 0.51, 0.95]))
    assert at.recall.tolist() == [0.75, 0.5, 0.25, 0] and np.isnan(at.precision[-1])


def test_analysis_of_the_hand_made_case(matches):
    found = json.loads(json.dumps(analyze(matches.evaluated, 0.45), allow_nan=False))
    assert found["best"] == {"scores": 0.9, "precision": 1, "recall": 0.25, "f1": 0.4}
    gain = pytest.approx(100 * 17 / 202)
    assert found["errors"]["missed"] == {"count": 1, "confident": None, "gain": gain}
    assert [found["errors"][name]["count"] for name in DETECTION_ERRORS] == [1] * 5
    assert [found["errors"][name]["confident"] for name in DETECTION_ERRORS] == [1, 1, 1, 1, 0]
    assert found["confusion"]["classes"] == ["cat", "dog", "background"]
    assert found["confusion"]["counts"] == [[0, 0, 1], [0, 2, 2], [1, 0, 1], [2, 0, 2], [2, 1, 1]]
    calibration = found["calibration"]
    assert calibration["expected_error"] == pytest.approx((0.1 + 0.8 + 0.7 + 0.6 + 0.5 + 0.4) / 6)
    assert calibration["largest_error"] == pytest.approx(0.8)
    assert [each["detections"] for each in calibration["bins"]] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert found["worst_images"] == [{"image_id": 7, "objects": 4, "correct": 1, "false": 4, "missed": 3}]
    cat, dog = found["classes"]
    assert (cat["objects"], cat["detections"], cat["AP50"]) == (3, 4, pytest.approx(100 * 34 / 101))
    assert (cat["error"], cat["gain"]) == ("missed", pytest.approx(100 * 17 / 101))
    assert (dog["error"], dog["gain"], dog["AP50"], dog["best"]) == (
        "classification", pytest.approx(100), 0, None
    )  # fmt: skip


def test_suspected_annotations_name_places(matches):
    suspects = analyze(matches.evaluated)["suspected_annotations"]
    place = {"image_id": 7, "box": [65, 45, 10, 10], "class": "dog", "score": 0.4}
    assert suspects["not_annotated"] == [place]
    place = {"image_id": 7, "box": [40, 0, 20, 20], "class": "cat", "score": 0.7, "annotated": "dog"}
    assert suspects["other_class"] == [place]
    assert suspects["not_detected"] == [{"image_id": 7, "box": [40, 35, 10, 10], "class": "cat"}]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_precision_of_each_class_equals_pycocotools(kind):
    golden = json.loads((GOLDEN / "coco_eval.json").read_text())
    evaluated = {}
    inputs = golden["gt"], golden["dets"], [kind]
    metrics = evaluate_coco(*inputs, per_class=True, inspect=evaluated.__setitem__)[kind]
    found = analyze(evaluated[kind])
    assert {row["class"]: row["AP"] for row in found["classes"]} == metrics["per_class"]
    matches, precision = read_matches(evaluated[kind]), evaluated[kind].curves.precision
    objects = matches.objects_per_class()
    for row, counted in enumerate(~matches.detections.ignored):
        chosen = (part[counted] for part in (matches.detections.classes, matches.detections.scores,
                                             matches.detections.correct[row]))  # fmt: skip
        expected = precision[row, :, :, 0].mean(axis=0)
        expected[objects == 0] = np.nan
        np.testing.assert_allclose(class_precisions(*chosen, objects), expected, atol=1e-12)
    assert found["precision_recall"]["IoU 0.50"] == pytest.approx(
        precision[0, :, objects > 0, 0].mean(axis=0), abs=1e-4
    )
    sizes = {row["size"]: row["AP"] for row in found["sizes"]}
    assert sizes["medium"] == metrics["APm"] and sizes["large"] == metrics["APl"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_errors_and_calibration_equal_those_of_another_library(kind):
    golden, expected = (
        json.loads((GOLDEN / name).read_text()) for name in ("coco_eval.json", "tide.json")
    )
    evaluated, expected = {}, expected[kind]
    evaluate_coco(golden["gt"], golden["dets"], [kind], inspect=evaluated.__setitem__)
    found = analyze(evaluated[kind])
    gained = {name: values["gain"] / 100 for name, values in found["errors"].items()}
    assert gained == pytest.approx(expected["gains"], abs=1e-9)
    assert {name: found["errors"][name]["count"] for name in expected["counts"]} == expected["counts"]
    for name in ("expected_error", "largest_error"):
        assert found["calibration"][name] == pytest.approx(expected[name], abs=1e-9)


def test_sizes_of_the_set_are_quarters():
    truth = ground_truth(*((7, 3, x, 0, side) for x, side in ((0, 4), (6, 8), (16, 12), (30, 16))))
    results = detections((0, 0.9, 30, 0, 16), (0, 0.8, 0, 40, 5)).to_coco(7, INFO)
    evaluated = {}
    evaluate_coco(truth, results, ["bbox"], inspect=evaluated.__setitem__)
    quarters = [row for row in analyze(evaluated["bbox"])["sizes"] if "quarter" in row["size"]]
    assert [row["objects"] for row in quarters] == [1, 1, 1, 1]
    assert [row["AP"] for row in quarters] == [0, 0, 0, pytest.approx(100)]
    assert [row["found"] for row in quarters] == [0, 0, 0, 1]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("objects, found", [(0, 0), (0, 2), (2, 0)])
def test_nothing_annotated_or_nothing_detected_is_ordinary(kind, objects, found):
    truth = ground_truth(*[(7, 3, 5, 5, 20), (9, 17, 5, 5, 20)][:objects])
    results = detections(*[(0, 0.9, 5, 5, 20), (1, 0.8, 30, 5, 20)][:found]).to_coco(7, INFO)
    for entry in [*truth["annotations"], *results]:
        entry["keypoints"] = [10, 10, 2] * 17
    evaluated = {}
    evaluate_coco(truth, results, [kind], inspect=evaluated.__setitem__)
    analysis = json.loads(json.dumps(analyze(evaluated[kind]), allow_nan=False))
    assert (analysis["objects"], analysis["detections"]) == (objects, found)
    assert analysis["errors"]["false_negatives"]["count"] == objects
    assert analysis["errors"]["false_positives"]["count"] == found
    assert analysis["best"] is None and analysis["min_score"] == 0.5


def test_keypoints_are_judged_by_their_similarity():
    truth = ground_truth((7, 3, 5, 5, 20), (9, 3, 5, 5, 20))
    results = detections((0, 0.9, 5, 5, 20)).to_coco(7, INFO)
    results += detections((0, 0.8, 5, 5, 20)).to_coco(9, INFO)
    for entry in truth["annotations"]:
        entry["keypoints"] = [10, 10, 2, 20, 20, 2]
    for entry, x in zip(results, (10, 13), strict=True):  # OKS 1, and (1 + exp(-9 / (2 * 400 * 0.04))) / 2
        entry["keypoints"] = [10, 10, 1, 20 - 10 + x, 20, 1]
    matches = matches_of(truth, results, "keypoints", keypoint_sigmas=(0.1, 0.1))
    np.testing.assert_allclose(matches.pairs.overlaps, [1, (1 + np.exp(-9 / 32)) / 2], rtol=1e-6)
    assert matches.detections.correct[0].all() and (find_errors(matches).kinds == -1).all()
