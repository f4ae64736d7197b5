"""Notebooks run as they stand, but for the number of steps."""

import json
import os
import subprocess
import sys

import pytest
from paths import REPOSITORY
from test_package import FAST_COMPILATION

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
STEPS = {"steps=400, decay_steps=(300, 360)": "steps=10, decay_steps=()"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_the_same_kinds_of_outputs(path, tmp_path):
    """In a process of its own, on one device."""
    text = path.read_text()
    for committed, short in STEPS.items():
        assert committed in text
        text = text.replace(committed, short)
    copy = tmp_path / path.name
    copy.write_text(text)
    command = [sys.executable, str(REPOSITORY / "docs" / "_notebooks.py"), str(copy)]
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION}
    finished = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert finished.returncode == 0, finished.stderr

    def kinds(text: str) -> list[list[str]]:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return [[" ".join(output.get("data", ["text"])) for output in cell["outputs"]] for cell in cells]

    assert kinds(copy.read_text()) == kinds(path.read_text())
