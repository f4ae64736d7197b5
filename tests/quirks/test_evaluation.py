"""Evaluation: ground truth and results as tools write them."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated_results import evaluate_mutated, mutations
from quirks import quirk
from square_objects import INFO, detections, ground_truth

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.coco import evaluate_coco, evaluate_files

OBJECTS = (7, 3, 5, 5, 20), (7, 17, 30, 10, 40), (9, 3, 0, 0, 50)
FOUND = [
    *detections((0, 0.9, 5, 5, 20), (1, 0.8, 30, 10, 40)).to_coco(7, INFO),
    *detections((0, 0.7, 0, 0, 50)).to_coco(9, INFO),
]
CLEAN = evaluate_coco(ground_truth(*OBJECTS), FOUND)


def changed(change, *, objects=OBJECTS):
    truth, results = ground_truth(*objects), copy.deepcopy(FOUND)
    change(truth, results)
    return evaluate_coco(truth, results)


def set_all(entries, key, convert):
    for entry in entries:
        entry[key] = convert(entry[key])


@quirk("`iscrowd` as text, boolean, float or null", "read as 0 or 1; anything else is refused")
@pytest.mark.parametrize("value", [0, 0.0, False, None, "0", "false", "False", " no ", ""])
def test_iscrowd_in_every_spelling(value):
    assert changed(lambda truth, _: set_all(truth["annotations"], "iscrowd", lambda _: value)) == CLEAN
    crowd = {None: "1", "": "true"}.get(value, True)
    metrics = changed(lambda truth, _: set_all(truth["annotations"], "iscrowd", lambda _: crowd))
    assert metrics["bbox"]["AP"] is None  # nothing to find


@quirk(
    "ids as text, as float, of mixed types, or names",
    "whole numbers are one id in every spelling; other texts are ids, too",
)
@pytest.mark.parametrize("convert", [str, float, np.int64, lambda id_: str(id_) if id_ == 7 else id_])
def test_ids_of_other_and_of_mixed_types(convert):
    def change(truth, results):
        set_all(truth["images"], "id", convert)
        set_all(truth["annotations"], "image_id", int)
        set_all(results, "image_id", convert)

    assert changed(change) == CLEAN

    def names(truth, results):
        for entries, key in (
            (truth["images"], "id"),
            (truth["annotations"], "image_id"),
            (results, "image_id"),
        ):
            set_all(entries, key, lambda id_: "seven.png" if id_ == 7 else 2**60)

    assert changed(names) == CLEAN


@quirk('ids that are nearly numbers ("07", "7_0"), or beyond 2**53', "ids of their own, matched exactly")
@pytest.mark.parametrize("ids", [("7", "07"), ("7_0", "70"), ("7e0", 7), (2**53, 2**53 + 1), (2**70, -1)])
def test_ids_that_are_nearly_equal(ids):
    def change(truth, results):
        new = dict(zip((7, 9), ids, strict=True))
        for entries, key in ((truth["images"], "id"), (truth["annotations"], "image_id")):
            set_all(entries, key, new.get)
        set_all(results, "image_id", new.get)

    assert changed(change) == CLEAN


@quirk("two categories of one name", "two entries of the metrics per class, with their ids")
def test_categories_of_one_name_have_two_entries():
    truth = ground_truth(*OBJECTS)
    truth["categories"][1]["name"] = "cat"
    metrics = evaluate_coco(truth, FOUND[:1] + FOUND[2:], ["bbox"], per_class=True)["bbox"]
    assert metrics["per_class"] == {"cat (id 3)": pytest.approx(100), "cat (id 17)": 0}


@quirk(
    "objects without a mask, where masks are scored",
    "detections on them are neither right nor wrong; their number is said",
)
def test_detections_on_objects_without_a_mask_do_not_count():
    truth = ground_truth(*OBJECTS)
    truth["annotations"][0]["segmentation"] = [[]]
    notices = []
    metrics = evaluate_coco(truth, FOUND, ["segm", "bbox"], notices=notices)
    assert metrics["segm"]["AP"] == pytest.approx(100) and metrics["bbox"]["AP"] == pytest.approx(100)
    assert notices == ["1 objects have no mask: segm ignores detections in their boxes"]
    missed = evaluate_coco(truth, FOUND[1:], ["segm"])["segm"]
    assert missed["AP"] == pytest.approx(100)
    elsewhere = FOUND[0] | {"segmentation": FOUND[1]["segmentation"]}  # in the box of no object of its class
    assert evaluate_coco(truth, [elsewhere | {"score": 1.0}, *FOUND[1:]], ["segm"])["segm"]["AP"] < 80


@quirk("no object with a mask", "boxes are scored; masks are refused in one sentence")
@pytest.mark.parametrize("empty", [None, [], [[]], {}, "missing"])
def test_ground_truth_without_any_mask_is_refused_for_masks_alone(empty):
    truth = ground_truth(*OBJECTS)
    for annotation in truth["annotations"]:
        annotation["segmentation"] = empty
        if empty == "missing":
            del annotation["segmentation"]
    assert evaluate_coco(truth, FOUND, ["bbox"])["bbox"] == CLEAN["bbox"]
    with pytest.raises(
        InputError, match="none of the 3 objects of the ground truth has a mask, which segm needs"
    ):
        evaluate_coco(truth, FOUND, ["segm"])


def square_mask(form, entry):
    """The mask of a result as another tool writes it; all are filled squares."""
    height, width = entry["segmentation"]["size"]
    x, y, side, _ = map(int, entry["bbox"])
    polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
    column = np.zeros((height, width), bool)
    column[y : y + side, x : x + side] = True
    flat = np.concatenate([[False], column.T.ravel()])
    edges = np.flatnonzero(np.diff(flat, append=False))
    runs = np.diff(edges, prepend=0, append=height * width).tolist()
    return {
        "polygon": [polygon],
        "flat polygon": polygon,
        "uncompressed": {"size": [height, width], "counts": runs},
        "bytes": entry["segmentation"] | {"counts": entry["segmentation"]["counts"].encode()},
        "size as text": entry["segmentation"] | {"size": [str(height), str(width)]},
    }[form]


@quirk("masks of results as polygons, uncompressed run lengths or bytes", "scored as compressed codes are")
@pytest.mark.parametrize("form", ["polygon", "flat polygon", "uncompressed", "bytes", "size as text"])
def test_masks_of_results_in_every_form(form):
    results = [entry | {"segmentation": square_mask(form, entry)} for entry in FOUND]
    assert evaluate_coco(ground_truth(*OBJECTS), results, ["segm"])["segm"] == CLEAN["segm"]


WHOLE = FOUND[0]["segmentation"]


@quirk("a truncated or damaged run-length code", "refused by the name of its entry")
@pytest.mark.parametrize(
    "counts",
    [
        WHOLE["counts"][:-1],
        WHOLE["counts"] + "1",
        "",
        "~~~",
        "é",
        "o" * 40,
        "P" * 30,
        [4800, -1, 1],
        [1, 2],
        [[]],
        5,
    ],
)
def test_run_length_codes_that_do_not_fill_the_image(counts):
    """pycocotools never returns from some of them."""
    for side in ("annotations", "results"):
        truth, results = ground_truth(*OBJECTS), copy.deepcopy(FOUND)
        entries = truth["annotations"] if side == "annotations" else results
        entries[0]["segmentation"] = {"size": [60, 80], "counts": counts}
        with pytest.raises(
            InputError, match=r'(annotation 0|entry 0).* unusable "segmentation": run-length code'
        ):
            evaluate_coco(truth, results, ["segm"])


@quirk(
    "missing fields, ids or numbers of other types in ground truth or results",
    "refused by the name of the entry",
)
@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda truth, _: truth["images"].append({"width": 3}),
            'image number 2 of the ground truth has no "id"',
        ),
        (
            lambda truth, _: truth["images"].append({"id": 7}),
            "two entries of the ground truth have the image id 7",
        ),
        (
            lambda truth, _: truth["categories"][0].update(id=[3]),
            r"has id \[3\], which is neither a whole number",
        ),
        (lambda truth, _: truth["annotations"][1].pop("image_id"), 'annotation 1 .* has no "image_id"'),
        (lambda truth, _: truth["annotations"][1].update(bbox="5"), 'annotation 1 .* unusable "bbox"'),
        (
            lambda truth, _: truth["annotations"][1].update(bbox=[10**400] * 4),
            "it must hold 4 finite numbers",
        ),
        (
            lambda truth, _: truth["annotations"][1].update(iscrowd="maybe"),
            "iscrowd 'maybe', but it must be 0 or 1",
        ),
        (
            lambda truth, _: truth.update(annotations={"a": 1}),
            '"annotations" of the ground truth must be a list',
        ),
        (lambda truth, _: truth["annotations"].append(5), "its entry 3 is 5"),
        (
            lambda _, results: results.append([]),
            r"the results must be a list of objects, but its entry 3 is \[\]",
        ),
        (lambda _, results: results[0].update(image_id=None), "results entry 0 has image_id None"),
        (lambda _, results: results[0].update(score=10**400), "results entry 0 has score"),
        (
            lambda _, results: results[0].update(segmentation=[]),
            'results entry 0 has an empty "segmentation"',
        ),
    ],
)
def test_malformed_entries_are_named(change, message):
    with pytest.raises(InputError, match=message) as caught:
        changed(change)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300


@quirk("objects of images or categories that are not listed", "do not count")
def test_objects_of_unlisted_images_and_categories_do_not_count():
    def change(truth, _):
        truth["annotations"] += [truth["annotations"][0] | {key: 99} for key in ("image_id", "category_id")]

    assert changed(change) == CLEAN


def test_objects_of_unlisted_categories_are_objects_for_proposals():
    truth = ground_truth(*OBJECTS)
    truth["annotations"][0]["category_id"] = 99
    recall = [evaluate_coco(truth, FOUND[n:], ["proposals"])["proposals"]["AR100"] for n in (0, 1)]
    assert recall == [pytest.approx(100), pytest.approx(100 * 2 / 3)]


@quirk("files with a byte order mark; nested too deeply; not UTF-8", "read; refused in one sentence")
def test_files_with_a_byte_order_mark_and_deeply_nested_ones(tmp_path):
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(ground_truth(*OBJECTS)), encoding="utf-8-sig")
    results.write_text(json.dumps(FOUND), encoding="utf-8-sig")
    assert evaluate_files(truth, results) == CLEAN
    results.write_text("[" * 200_000)
    message = "results.json is not valid JSON of a COCO file: it is nested too deeply"
    with pytest.raises(InputError, match=message):
        evaluate_files(truth, results)
    results.write_bytes(b"[\xff\xfe]")
    with pytest.raises(InputError, match="results.json is not valid JSON"):
        evaluate_files(truth, results)


@settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(mutations(), st.sampled_from(["bbox", "segm", "keypoints", "proposals"]))
def test_mutated_ground_truth_and_results_end_in_metrics_or_one_sentence(mutation, kind):
    try:
        evaluate_mutated(mutation, kind)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
