"""The train step in two processes of two devices each makes the update of a single device."""

import numpy as np
import pytest

from benchmarks.scaling import measure as scaling
from benchmarks.scaling.measure import Layout


def test_two_processes_of_two_devices_make_the_update_of_one(tmp_path):
    options, layouts, lines = scaling.Options(steps=0, programs=False), (Layout(1, 1), Layout(2, 2)), []
    result = scaling.measure(options, tmp_path, lines.append, layouts)
    assert result["failures"] == [] and len(lines) == 2
    one, four = result["rows"]
    assert four["same_bits"] and one["same_bits"]
    for form in scaling.FORMS:
        for after, most in scaling.ROUNDING.items():
            assert one[form][f"difference_{after}"] == 0 < four[form][f"difference_{after}"] < most
        assert four[form]["losses"] == pytest.approx(one[form]["losses"], rel=1e-4)


def test_what_differs_is_seen():
    arrays = {f"{form}/{when}/{name}": np.float32([1, 2]) for form in scaling.FORMS for when in ("before", "1", "3") for name in ("a", "b")}
    one = {**arrays, "pmap/1/a": np.float32([1, 4]), "pmap/3/a": np.float32([1, 4])}
    other = {**one, "shard_map/1/a": np.float32([1, 4]), "shard_map/3/a": np.float32([1.5, 4])}
    assert scaling.differences(other, one, "shard_map", 1) == {"a": 0, "b": 0}
    assert scaling.differences(other, one, "shard_map", 3) == {"a": 0.25, "b": 0}
    figures = {"devices": 1, "parameters": 4, **{form: {"compiled": {"64x96": 2, "96x64": 1}} for form in scaling.FORMS}}
    _, failures = scaling.compare(Layout(1, 2), figures, other, one)
    for words in ("shard_map, after 3 steps: a differs by 2.5e-01", "compiled by padded size", "pmap and shard_map differ", "there were 1 devices"):
        assert any(words in failure for failure in failures), words


def test_a_failed_process_is_told(tmp_path):
    with pytest.raises(scaling.InputError, match=r"(?s)a process of 1 x 1 devices ended with status 2: .*--model\.backbone\.colour"):
        scaling.run_layout(Layout(1, 1), scaling.Options(steps=0), tmp_path, ["--model.backbone.colour", "red"])
