"""The benchmark of starts: the file it writes, and the table that the guide shows of it."""

import json
from pathlib import Path

from paths import REPOSITORY

from benchmarks.model import start
from benchmarks.model.start import CASES, ROWS, Options, measure, page


def test_later_calls_add_to_the_file(tmp_path, monkeypatch):
    calls = []

    def counted(name: str):
        return lambda: calls.append(name) or float(len(calls))

    monkeypatch.setattr(start, "_starts", lambda *_: {name: counted(name) for name in ROWS})
    monkeypatch.setattr(start, "_prepare", lambda case, work: case == "predict" and not calls)
    out = tmp_path / "start.json"
    for cases, repeats in (("predict",), 1), (("predict", "import"), 3):
        options = Options(Path("photo.jpg"), tmp_path / "work", cases=cases, repeats=repeats, out=out)
        assert measure(options) == [out]
    result = json.loads(out.read_text())
    assert calls == ["torchvision", "predict"] * 5 + ["import", "help"] * 3
    assert result["predict"] == {"first_seconds": 2, "seconds": 8, "all_seconds": [6, 8, 10]}
    assert result["help"] == {"seconds": 14, "all_seconds": [12, 14, 16]}


def test_the_guide_shows_the_committed_figures():
    result = json.loads(Options.out.read_text())
    assert {name for names in CASES.values() for name in names} == set(ROWS) <= set(result)
    assert all(len(result[name]["all_seconds"]) >= 5 for name in ROWS)
    assert page(result) in (REPOSITORY / "docs" / "guides" / "cpu.md").read_text()
