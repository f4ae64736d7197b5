"""Programs of many padded sizes: memory and memory maps stay bounded."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("program_memory.py")


def check(measured: dict) -> None:
    """Asserts that nothing grows much once as many programs were compiled as are kept."""
    figures = [each for each in measured["figures"] if each["sizes"] > measured["programs_kept"]]
    first, last = figures[0], figures[-1]
    assert last["maps"] < 1.1 * first["maps"] < 20_000
    assert last["megabytes"] - first["megabytes"] < 6 * (last["sizes"] - first["sizes"])


def test_memory_maps_do_not_grow_with_the_number_of_sizes():
    process = subprocess.run(
        [sys.executable, SCRIPT, "30"], capture_output=True, text=True, check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    check(json.loads(process.stdout))


def test_recorded_figures_are_bounded():
    measured = json.loads(SCRIPT.with_suffix(".json").read_text())
    assert measured["figures"][-1]["sizes"] == 200
    check(measured)
