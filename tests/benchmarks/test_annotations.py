"""The benchmarks of reading annotation files and of inspecting a data set run."""

import json

from benchmarks.data import annotations, inspection


def test_small_benchmark(tmp_path):
    out = tmp_path / "annotations.json"
    options = annotations.Options(images=5, objects=20, rounds=1, out=out)
    assert annotations.run(options) == [out]
    result = json.loads(out.read_text())
    assert result["objects"] == 20 and result["this"]["seconds"] > 0


def test_small_inspection(tmp_path):
    out = tmp_path / "inspect.json"
    assert inspection.run(inspection.Options(images=40, objects=200, rounds=1, out=out)) == [out]
    result = json.loads(out.read_text())
    assert result["objects"] == 200 and result["this"]["seconds"] > 0
