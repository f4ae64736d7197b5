"""Comparison of updates, and the page of fault tolerance and scaling."""

import json

import numpy as np

from benchmarks.scaling import measure as scaling
from benchmarks.scaling import report
from benchmarks.scaling.measure import Layout


def test_differences_are_detected():
    start, full, part = ({"a": np.float32(a), "b": np.float32([1, 2])} for a in ([1, 2], [1, 4], [1.5, 4]))
    update = {"before": start, "1": full, "3": full}
    one = {"pmap": update, "shard_map": {"before": start, "1": start, "3": start}}
    other = {"pmap": update, "shard_map": {"before": start, "1": full, "3": part}}
    assert scaling.differences(other, one, "shard_map", 1) == {"a": 0, "b": 0}
    assert scaling.differences(other, one, "shard_map", 3) == {"a": 0.25, "b": 0}
    compiled = {mapping: {"compiled": {"64x96": 2, "96x64": 1}} for mapping in scaling.MAPPINGS}
    _, failures = scaling.compare(Layout(1, 2), {"devices": 1, "parameters": 4, **compiled}, other, one)
    for words in (
        "shard_map, after 3 steps: a differs by 2.5e-01", "compiled by padded size",
        "pmap and shard_map differ", "there were 1 devices",
    ):  # fmt: skip
        assert any(words in failure for failure in failures), words


def test_published_page_is_rendered_from_the_result_files():
    assert (report.RESULTS / report.PAGE).read_text() == report.page(*report.read())


def test_page_shows_figures_and_failures(tmp_path, capsys):
    measured, measured_scaling = report.read()
    measured["kills"]["kills"][0]["steps_lost"] = 123
    measured["single"]["failures"] = ["the loss explodes: a | line"]
    for name, content in (("faults", measured), ("scaling", measured_scaling)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert report.main([str(tmp_path)]) == 0 and report.PAGE in capsys.readouterr().out
    page = (tmp_path / report.PAGE).read_text()
    assert "| 123 |" in page and "Failures:\n\n- the loss explodes: a \\| line" in page


def test_page_needs_the_result_files(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    message = "faults.json cannot be read: run `python -m tests.slow.faults` first"
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
