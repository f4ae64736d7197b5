"""The benchmark of NMS on few boxes: results and file."""

import json
import os

import pytest

from benchmarks.nms import measure


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_small_cases_keep_the_same_boxes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MRCNN_TORCHVISION_PYTHON", raising=False)
    out = tmp_path / "nms.json"
    two = dict(list(measure.cases(0.02).items())[3:5])
    monkeypatch.setattr(measure, "cases", lambda scale: two)
    given = measure.Options(scale=0.01, repeats=1, out=out)
    assert measure.run(given) == [out]
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == list(two)
    assert all(len(row["kept"]) == 1 and set(row["milliseconds"]) == {"ours"} for row in rows)


def test_committed_figures_are_of_these_cases():
    rows = json.loads(measure.Options.out.read_text())["rows"]
    assert [row["case"] for row in rows] == list(measure.cases(1e-3))
    assert all(len(row["kept"]) == 1 for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("MRCNN_TORCHVISION_PYTHON"),
    reason="MRCNN_TORCHVISION_PYTHON does not name a Python interpreter that has torch and torchvision",
)
def test_torchvision_keeps_the_same_boxes(tmp_path, monkeypatch):
    one = dict(list(measure.cases(0.05).items())[:1])
    monkeypatch.setattr(measure, "cases", lambda scale: one)
    (row,) = measure.measure(measure.Options(repeats=1, out=tmp_path / "nms.json"))
    assert len(row["kept"]) == 1 and row["milliseconds"]["torchvision"] > 0
