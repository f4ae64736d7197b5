"""`mrcnn compare`: its table, files and refusals."""

import json
from pathlib import Path

import pytest
from cli_inputs import table_rows
from square_objects import INFO, detections, ground_truth

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.report.compare import compare_results

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
OBJECTS = (7, 3, 0, 0, 20), (9, 3, 0, 0, 20)


@pytest.fixture(autouse=True)
def files():
    """truth.json, none.json without detections, and all.json with every object."""
    found = [entry for image in (7, 9) for entry in detections((0, 0.9, 0, 0, 20)).to_coco(image, INFO)]
    for name, content in (("truth", ground_truth(*OBJECTS)), ("none", []), ("all", found)):
        Path(f"{name}.json").write_text(json.dumps(content))


def test_compare_prints_and_writes_the_difference(mrcnn):
    arguments = "none.json", "all.json", "--truth", "truth.json", "--out", "compared", "--resamples", "100"
    status, out, err = mrcnn("compare", *arguments)
    assert status == 0 and err == ""
    assert table_rows(out)["AP"] == ["0.0", "100.0", "+100.0", "+100.0 to +100.0"]
    assert "Masks: the second is better; AP differs by +100.0" in out
    written = json.loads(Path("compared/comparison.json").read_text())
    assert (written["first"], written["second"]) == ("none.json", "all.json")
    assert written["kinds"]["bbox"]["errors"]["missed"]["first"] == pytest.approx(100)
    assert Path("compared/comparison.html").exists()


def test_no_image_and_no_detection_are_no_difference(mrcnn):
    Path("empty.json").write_text(json.dumps(ground_truth() | {"images": []}))
    arguments = "none.json", "none.json", "--truth", "empty.json", "--out", "compared", "--resamples", "100"
    status, out, err = mrcnn("compare", *arguments)
    assert status == 0 and err == "" and "Boxes: AP is not defined." in out


@pytest.mark.parametrize("content", [[1], [None], [[]]])
def test_entries_of_results_are_checked(rejected, content):
    Path("bad.json").write_text(json.dumps(content))
    message = rejected("compare", "all.json", "bad.json", "--truth", "truth.json")
    assert "bad.json must be a list of objects, but its entry 0 is" in message


def test_an_unusable_entry_is_named_with_its_file():
    entries = json.loads(Path("all.json").read_text())
    Path("bad.json").write_text(json.dumps([entries[0] | {"bbox": [0, 0, "5", 5]}]))
    with pytest.raises(InputError, match='^bad.json: results entry 0 .* "bbox"'):
        compare_results("all.json", "bad.json", "truth.json", resamples=100)


@pytest.mark.parametrize(
    "change", [{"annotations": None}, {"annotations": 5}, {"images": 5}, {"categories": [1]}]
)
def test_ground_truth_is_checked(rejected, change):
    Path("truth.json").write_text(json.dumps(ground_truth(*OBJECTS) | change))
    message = rejected("compare", "all.json", "all.json", "--truth", "truth.json")
    assert f'"{next(iter(change))}" of the ground truth must be a list of objects' in message


@pytest.mark.parametrize(
    "content",
    [5, [], {"dataset": "x"}, {"kinds": 5}, {"kinds": {"bbox": 5}}, {"kinds": {"bbox": {"classes": []}}},
     {"kinds": {}, "dataset": 5}, {"kinds": {"bbox": {"classes": [], "max_detections": []}}},
     {"kinds": {"bbox": {"classes": [{"class": "cat"}], "max_detections": ["x"]}}},
     {"kinds": {"bbox": {"classes": ["cat"], "max_detections": [1]}}}],
)  # fmt: skip
def test_an_analysis_is_checked(rejected, content):
    Path("evaluation").mkdir()
    Path("all.json").rename("evaluation/results.json")
    Path("evaluation/analysis.json").write_text(json.dumps(content))
    message = rejected("compare", "none.json", "evaluation", "--truth", "truth.json")
    assert "analysis.json is not an analysis: evaluate again" in message


def test_an_analysis_of_no_common_kind_leaves_boxes(mrcnn):
    Path("evaluation").mkdir()
    Path("all.json").rename("evaluation/results.json")
    Path("evaluation/analysis.json").write_text('{"kinds": {}}')
    arguments = "none.json", "evaluation", "--truth", "truth.json", "--resamples", "100"
    status, out, _ = mrcnn("compare", *arguments)
    assert status == 0 and "Boxes: the second is better" in out and "Masks" not in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.json", "all.json"], "nothing says what none.json was evaluated on: give --truth"),
        (["none.json", "gone.json", "--truth", "truth.json"], "cannot read gone.json: No such file"),
        (["none.json", "all.json", "--resamples", "99"],
         "--resamples must be a whole number from 100 to 100,000, not 99"),
        (["none.json", "all.json", "--resamples", "3000000000"], "from 100 to 100,000, not 3000000000"),
        (["none.json", "all.json", "--truth", "truth.json", "--split", "train"],
         "a split belongs to a prepared data set, not to the annotation file truth.json: leave --split out"),
        (["none.json", "all.json", "--seed", "-1"], "--seed must be 0 or more, not -1"),
        (["none.json", "all.json", "--out", "truth.json"], "cannot write to truth.json"),
        (["truth.json", "all.json", "--truth", "truth.json"], "truth.json is not a COCO results file"),
    ],
)
def test_what_compare_refuses(rejected, arguments, message):
    assert message in rejected("compare", *arguments)
