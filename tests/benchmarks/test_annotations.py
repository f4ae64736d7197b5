"""The benchmark of reading annotation files runs."""

import json

from benchmarks.data import annotations


def test_small_benchmark(tmp_path):
    out = tmp_path / "annotations.json"
    options = annotations.Options(images=5, objects=20, rounds=1, out=out)
    assert annotations.run(options) == [out]
    result = json.loads(out.read_text())
    assert result["objects"] == 20 and result["this"]["seconds"] > 0
