"""Matching and its curves: the arrays of pycocotools, to the last bit, and its matches, id by id."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from paths import GOLDEN
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_jax.evaluation.analysis.matches import read_matches
from mrcnn_jax.evaluation.coco import _check, _evaluate
from mrcnn_jax.evaluation.coco_checks import check_ground_truth
from mrcnn_jax.evaluation.coco_result_checks import RESULT_FIELDS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIGMAS = np.array([0.03, 0.1, 0.07, 0.02, 0.05])


def evaluator_of_pycocotools(truth, results, kind, limits, sigmas):
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    if kind == "proposals":  # in the order they are given: without categories, ties are in the order of these
        truth["categories"] = truth["categories"][:1]
        for one in truth["annotations"] + results:
            one["category_id"] = truth["categories"][0]["id"]
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = COCO()
        indexed.dataset = truth
        indexed.createIndex()
        keys = ("image_id", "category_id", "score", RESULT_FIELDS[kind])
        found = indexed.loadRes([{key: entry[key] for key in keys} for entry in results])
        evaluator = COCOeval(indexed, found, "bbox" if kind == "proposals" else kind)
        evaluator.params.maxDets = [20] if kind == "keypoints" else limits
        if kind == "keypoints":
            evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def assert_equal_curves(truth, results, kind, limits=(1, 10, 100), sigmas=SIGMAS):
    evaluator = evaluator_of_pycocotools(truth, results, kind, list(limits), sigmas)
    limits = [20] if kind == "keypoints" else list(limits)
    evaluated = _evaluate(_check(check_ground_truth(truth), results, kind, limits, sigmas))
    np.testing.assert_array_equal(evaluated.curves.precision, evaluator.eval["precision"][..., -1])
    np.testing.assert_array_equal(evaluated.curves.recall, evaluator.eval["recall"])
    if kind != "proposals":
        assert_equal_matches(truth, read_matches(evaluated), evaluator)
    return evaluated.curves


def assert_equal_matches(truth, matches, evaluator):
    """Compares matches over all areas with those of pycocotools, by the ids of objects and detections."""
    everything = evaluator.params.areaRng[0]
    entries = [entry for entry in evaluator.evalImgs if entry and entry["aRng"] == everything]

    def joined(key):
        return np.concatenate([np.asarray(entry[key]) for entry in entries], axis=-1)

    places = [number for number, entry in enumerate(entries) for _ in entry["dtIds"]]
    classes = np.array([entries[place]["category_id"] for place in places])
    order = np.lexsort((-joined("dtScores"), classes))
    objects = sorted(truth["annotations"], key=lambda one: (one["category_id"], one["image_id"]))
    ids, detections = np.array([one["id"] for one in objects]), matches.detections
    assert 0 not in ids
    np.testing.assert_array_equal(np.array(evaluator.params.catIds)[detections.classes], classes[order])
    np.testing.assert_array_equal(1 + detections.positions, joined("dtIds")[order])
    found = np.where(detections.matches < 0, 0, ids[detections.matches])
    np.testing.assert_array_equal(found, joined("dtMatches")[:, order])
    np.testing.assert_array_equal(detections.ignored, joined("dtIgnore")[:, order])
    np.testing.assert_array_equal(detections.correct, (found > 0) & ~detections.ignored)
    object_order = np.argsort(ids)
    of_pycocotools = np.argsort(joined("gtIds"))
    np.testing.assert_array_equal(ids[object_order], joined("gtIds")[of_pycocotools])
    for ours, key in ((matches.objects.found, "gtMatches"), (matches.objects.ignored, "gtIgnore")):
        np.testing.assert_array_equal(ours[..., object_order], joined(key)[..., of_pycocotools] > 0)


def random_sets(seed, images=12, classes=3):
    """Images with up to 9 objects, some crowds, and up to 40 detections at coarse places and scores: many
    overlaps and scores are equal."""
    rng, height, width = np.random.default_rng(seed), 90, 120

    def box():
        corner, sides = 10 * rng.integers(0, 7, 2), 10 * rng.integers(1, 9, 2)
        return [float(side) for side in (*corner, *np.minimum(sides, [width, height] - corner))]

    def entry(image_id):
        x, y, w, h = place = box()
        (rle,) = coco_mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], height, width)
        points = rng.uniform(place[:2], np.add(place[:2], place[2:]), (5, 2)).round(1)
        points = np.column_stack([points, rng.integers(0, 3, 5) * (rng.random() < 0.8)])
        return {
            "image_id": image_id, "category_id": int(rng.integers(1, classes + 1)), "bbox": place,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
            "keypoints": points.ravel().tolist(),
        }  # fmt: skip

    image_ids = range(1, images + 1)
    objects = [entry(image_id) for image_id in image_ids for _ in range(rng.integers(0, 10))]
    results = [entry(image_id) for image_id in image_ids for _ in range(rng.integers(0, 41))]
    for number, one in enumerate(objects, start=1):
        visible = int(np.count_nonzero(one["keypoints"][2::3]))
        area = float(coco_mask.area(one["segmentation"]) * rng.choice([0.5, 1, 9]))
        one |= {"id": number, "area": area, "num_keypoints": visible, "iscrowd": int(rng.random() < 0.15)}
    names = [f"k{j}" for j in range(5)]
    categories = [{"id": i, "name": f"c{i}", "keypoints": names} for i in range(1, classes + 1)]
    listed = [{"id": i, "height": height, "width": width} for i in image_ids]
    results = [one | {"score": float(rng.integers(1, 9)) / 8} for one in results]
    return {"images": listed, "annotations": objects, "categories": categories}, results


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints", "proposals"])
def test_curves_and_matches_of_the_golden_sets_equal_those_of_pycocotools(kind):
    golden = json.loads((GOLDEN / "coco_eval.json").read_text())
    sigmas = COCOeval(iouType="keypoints").params.kpt_oks_sigmas
    curves = assert_equal_curves(golden["gt"], golden["dets"], kind, sigmas=sigmas)
    assert (curves.precision > 0).any()


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints", "proposals"])
@pytest.mark.parametrize("seed", range(5))
def test_curves_and_matches_of_random_sets_equal_those_of_pycocotools(kind, seed):
    assert_equal_curves(*random_sets(seed), kind, limits=[(1, 10, 100), (2, 7), (300,)][seed % 3])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_class_without_objects_or_without_detections(kind):
    truth, results = random_sets(9)
    truth["annotations"] = [each for each in truth["annotations"] if each["category_id"] != 2]
    results = [each for each in results if each["category_id"] != 3]
    curves = assert_equal_curves(truth, results, kind)
    assert (curves.precision[:, :, 1] == -1).all() and (curves.precision[:, :, 2, 0] == 0).all()
