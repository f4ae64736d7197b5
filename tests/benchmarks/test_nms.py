"""The benchmark of NMS on few boxes: results and file."""

import json
from pathlib import Path

import pytest

from benchmarks.nms import measure
from mrcnn_jax import ops


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_small_cases_keep_the_same_boxes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MRCNN_TORCHVISION_PYTHON", raising=False)
    other = Path(ops.__file__).with_name("nms.py")
    out = tmp_path / "nms.json"
    two = dict(list(measure.cases(0.02).items())[3:5])
    monkeypatch.setattr(measure, "cases", lambda scale: two)
    given = measure.Options(scale=0.01, repeats=1, other=other, out=out)
    assert measure.run(given) == [out]
    rows = json.loads(out.read_text())["rows"]
    assert [row["case"] for row in rows] == list(two)
    assert all(len(row["kept"]) == 1 and "ours" in row["milliseconds"] for row in rows)
    assert "other" in rows[0]["milliseconds"] and "torchvision" not in rows[0]["milliseconds"]


def test_committed_figures_are_of_these_cases():
    rows = json.loads(measure.Options.out.read_text())["rows"]
    assert [row["case"] for row in rows] == list(measure.cases(1e-3))
    assert all(len(row["kept"]) == 1 for row in rows)
