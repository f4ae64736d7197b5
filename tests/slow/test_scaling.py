"""The training step in two processes of two devices each makes the update of a single device."""

import pytest

from benchmarks.scaling import measure as scaling
from benchmarks.scaling.measure import Layout


def test_two_processes_of_two_devices_make_the_update_of_one():
    options = scaling.Options(steps=0, programs=False)
    result = scaling.measure(options, (Layout(1, 1), Layout(2, 2)))
    assert result["failures"] == []
    one, four = result["rows"]
    assert four["same_bits"] and one["same_bits"]
    for mapping in scaling.MAPPINGS:
        for steps, allowed in scaling.ROUNDING.items():
            name = f"difference_{steps}"
            assert one[mapping][name] == 0 < four[mapping][name] < allowed
        assert four[mapping]["losses"] == pytest.approx(one[mapping]["losses"], rel=1e-4)


def test_failed_process_is_reported(tmp_path):
    message = r"(?s)a process of 1 x 1 devices gave status 2: .*--model\.backbone\.colour"
    with pytest.raises(scaling.InputError, match=message):
        options, arguments = scaling.Options(steps=0), ["--model.backbone.colour", "red"]
        scaling.run_layout(Layout(1, 1), options, tmp_path, arguments)
