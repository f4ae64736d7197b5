"""Reports: self-contained and escaped HTML of bounded size, pictures beside annotations, compared files."""

import json
import operator
import re
from functools import reduce
from io import StringIO
from itertools import chain
from types import SimpleNamespace

import pytest
import saved_runs
from pages import Page
from rich.console import Console
from square_objects import INFO, detections, ground_truth

from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.analysis.analyze import MAX_SUSPECTS, analyze
from mrcnn_jax.evaluation.coco import evaluate_coco, metrics_table
from mrcnn_jax.evaluation.report.compare import compare_results
from mrcnn_jax.evaluation.report.comparison_page import comparison_table, verdict, write_comparison
from mrcnn_jax.evaluation.report.files import FIGURES, REPORT_FILES
from mrcnn_jax.evaluation.report.findings import HINTS, findings
from mrcnn_jax.evaluation.report.pictures import Illustrator
from mrcnn_jax.evaluation.report.write import write_report

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
NASTY = '<b>a</b> & "$x$" \ud800'


def report(out, split, results, kinds=("bbox", "segm"), title="Report") -> Page:
    evaluated = {}
    metrics = evaluate_coco(split.ground_truth(), results, kinds, inspect=evaluated.__setitem__)
    analyses = {kind: analyze(each) for kind, each in evaluated.items()}
    write_report(out, title, split, results, metrics, analyses)
    text = (out / "report.html").read_text()
    assert len(text) < 5_000_000 and "http" not in text
    return Page(text)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Ten images with two objects each, of which the classes have awkward names."""
    info = saved_runs.INFO._replace(category_names=(NASTY, "b"))
    images = [saved_runs.image(id_) for id_ in range(1, 11)]
    saved_runs.write(tmp_path_factory.mktemp("set") / "set", validation=images, info=info)
    return open_dataset(tmp_path_factory.getbasetemp() / "set0" / "set", "validation")


@pytest.fixture(scope="module")
def results(split):
    """Half of the objects, and detections on nothing."""
    found = []
    for entry in split.ground_truth()["annotations"][::2]:
        keys = "image_id", "category_id", "bbox", "segmentation"
        found.append({key: entry[key] for key in keys} | {"score": 0.9})
        found.append(found[-1] | {"bbox": [0, 0, 2, 2], "score": 0.95})
    return found


def test_report_is_whole_and_escaped(split, results, tmp_path):
    page = report(tmp_path, split, results, title=f"Evaluation of {NASTY}")
    assert page.tags["b"] == 0 and page.tags["script"] == 0
    assert "".join(page.texts).count('<b>a</b> & "$x$" \\ud800') >= 4
    assert all(source.startswith("data:image/") for source in page.sources)
    assert page.tags["img"] == 2 * 6 + 10 + 8  # figures, images with mistakes, false detections
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {name for name in REPORT_FILES if "keypoints" not in name}
    for name in FIGURES[:12]:
        assert min(read_image(tmp_path / name).shape[:2]) > 200
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    assert (analysis["dataset"], analysis["split"]) == (str(split.directory), "validation")
    assert analysis["kinds"]["bbox"]["objects"] == 20
    assert analysis["kinds"]["segm"]["max_detections"] == [1, 10, 100]


def test_report_of_no_image(tmp_path):
    class Empty(SimpleNamespace):
        def __len__(self):
            return 0

    truth = ground_truth() | {"images": []}
    split = Empty(ground_truth=lambda: truth, directory="set", split="none", info=INFO)
    page = report(tmp_path, split, [], kinds=["bbox"])
    assert any("Nothing is annotated" in text for text in page.texts) and page.tags["img"] == 6


def test_illustrations_are_reduced_and_bounded(split, results):
    illustrator = Illustrator(split, results, 0.5)
    entries = [{"image_id": 1, "box": [0, 0, 2, 2], "class": "b", "score": 0.9}] * 50
    shown = illustrator.suspects([entry | {"image_id": 1 + n % 10} for n, entry in enumerate(entries)])
    assert len(shown) == 8 and shown[0].caption == "b 0.90 in 1.png"
    assert all(len(each.content) <= 40_000 and each.content[:2] == b"\xff\xd8" for each in shown)
    outside = illustrator.suspects([{"image_id": 2, "box": [-90.0, 900.0, 5, 5], "class": "b"}])
    assert len(outside) == 1


def test_findings_name_fields_of_the_experiment():
    texts = [*chain(*HINTS.values()), *findings({"objects": 1, "detections": 0})]
    named = re.findall(r"\b(?:model|data|evaluation|train)\.[a-z_.]*[a-z]", " ".join(texts))
    assert len(named) == 5
    for name in named:
        reduce(operator.getitem, name.split("."), to_dict(Experiment()))


def test_findings_name_what_costs_most():
    truth = ground_truth((7, 3, 0, 0, 20), (9, 3, 0, 0, 20), (9, 3, 40, 0, 20))
    evaluated = {}
    found = detections((0, 0.9, 0, 0, 20), (0, 0.99, 50, 30, 20)).to_coco(7, INFO)
    evaluate_coco(truth, found, ["bbox"], inspect=evaluated.__setitem__)
    first, *rest = findings(analyze(evaluated["bbox"]))
    assert first.startswith("33.2 points of AP50 are lost because objects are not found (missed: 2).")
    assert any("mrcnn predict --score 0.90" in text for text in rest)
    assert any("Confident detections where nothing is annotated: 1. " in text for text in rest)
    many = analyze(evaluated["bbox"])
    many["suspected_annotations"]["not_annotated"] *= MAX_SUSPECTS
    assert any(f"nothing is annotated: {MAX_SUSPECTS} or more. " in text for text in findings(many))


@pytest.mark.parametrize(
    "score, shown", [(0.9963, "0.996"), (0.57, "0.570"), (1.0, "1.000"), (9e-7, "0.000")]
)
def test_the_recommended_score_finds_what_the_best_one_finds(score, shown):
    evaluated = {}
    found = detections((0, score, 0, 0, 20)).to_coco(7, INFO)
    evaluate_coco(ground_truth((7, 3, 0, 0, 20)), found, ["bbox"], inspect=evaluated.__setitem__)
    (sentence,) = [text for text in findings(analyze(evaluated["bbox"])) if "--score" in text]
    assert sentence.startswith(f"The minimum score {shown} balances")
    assert sentence.endswith(f": mrcnn predict --score {shown}.")


@pytest.mark.parametrize("name", ["data[old]", "x[/b]", "[red]", ":smile:", "a\\"])
def test_names_in_titles_of_tables_are_no_markup(name):
    row = dict.fromkeys(("first", "second", "difference", "low", "high"))
    for table in (metrics_table({}, name), comparison_table("bbox", {"metrics": {"AP": row}}, (name, name))):
        console = Console(file=StringIO(), width=99)
        console.print(table)
        assert name in console.file.getvalue()


@pytest.fixture
def pair(split, results, tmp_path):
    """Directories of two evaluations, of which the second has no false detections."""
    better = [entry for entry in results if entry["score"] == 0.9]
    for name, entries in (("first", results), ("second", better)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(entries))
        evaluated = {}
        evaluate_coco(split.ground_truth(), entries, inspect=evaluated.__setitem__)
        analyses = {kind: analyze(each) for kind, each in evaluated.items()}
        content = {"dataset": str(split.directory), "split": split.split, "kinds": analyses}
        (tmp_path / name / "analysis.json").write_text(json.dumps(content))
    return tmp_path / "first", tmp_path / "second"


def test_comparison_of_two_directories(pair, tmp_path):
    found = compare_results(*pair, resamples=20)
    assert list(found) == ["bbox", "segm"] and found["bbox"]["metrics"]["AP"]["low"] > 0
    assert verdict("bbox", found["bbox"]).startswith("Boxes: the second is better; AP differs by +")
    write_comparison(tmp_path / "out", found, ("<i>first", "second"))
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert page.tags["i"] == 0 and page.tags["table"] == 6
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["kinds"] == found


def test_files_are_compared_on_a_given_truth(pair, split, tmp_path):
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(split.ground_truth()))
    files = [folder / "results.json" for folder in pair]
    found = [compare_results(*files, each, resamples=20) for each in (truth, split.directory)]
    assert found[0] == found[1] == compare_results(*pair, resamples=20)


def test_what_cannot_be_compared_is_refused(pair, split, tmp_path):
    first, second = pair
    with pytest.raises(InputError, match="results.json was evaluated on: give --truth"):
        compare_results(first / "results.json", second)
    with pytest.raises(InputError, match="holds no results.json: evaluate it first"):
        compare_results(first, tmp_path)
    with pytest.raises(InputError, match="neither a prepared data set nor an annotation file"):
        compare_results(first, second, tmp_path)
    with pytest.raises(InputError, match="analysis.json is not a COCO results file"):
        compare_results(first, second / "analysis.json")
    analysis = json.loads((second / "analysis.json").read_text())
    (second / "analysis.json").write_text(json.dumps(analysis | {"split": "train"}))
    with pytest.raises(InputError, match="evaluated on different data"):
        compare_results(first, second)
