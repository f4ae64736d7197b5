"""Starts: modules that they must do without, programs that later ones reuse, and two at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from PIL import Image

from mrcnn_jax import compiled_programs
from mrcnn_jax.training import run_setup
from mrcnn_jax.training.loop import train

pytestmark = pytest.mark.slow

HEAVY = {"tensorflow_datasets", "grain", "matplotlib", "optax", "tensorboardX", "scipy", "torch"}
"""Packages that take tenths of a second to import."""


def imported(statement: str) -> set[str]:
    """Returns the top-level packages in a process that executed a statement."""
    program = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(process.stdout.split())


def test_imports_leave_out_what_takes_long():
    assert not imported("import mrcnn_jax") & (HEAVY | {"jax", "flax", "orbax", "tyro", "rich", "cv2"})
    assert not imported("import mrcnn_jax.cli.main") & (HEAVY | {"jax", "flax", "orbax", "cv2"})
    drawing = "from mrcnn_jax.visualize.text import fit; assert fit('dog 0.98', 12, 100) == 'dog 0.98'"
    assert not imported(f"import mrcnn_jax.cli.predict, mrcnn_jax.inference.predict; {drawing}") & HEAVY


def test_a_second_training_traces_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_setup, "enable_compilation_cache", lambda directory: tmp_path)
    experiment = tiny_run.run_experiment(tiny_run.dataset(tmp_path), steps=2, checkpoint_every=1)

    def run(name: str) -> dict:
        return train(experiment, tmp_path / name, tiny_run.recording_console(), store_programs=True)

    first, stored = run("first"), sorted((tmp_path / "programs").iterdir())
    assert len(stored) >= 3  # initial variables, step and detection
    monkeypatch.setattr(compiled_programs, "_write", lambda file, _: pytest.fail(f"{file} was not found"))
    assert run("second") == first
    assert sorted((tmp_path / "programs").iterdir()) == stored


@pytest.fixture
def processes(tmp_path):
    """``processes(names)``: runs `mrcnn predict` with an empty home, once for each name, all at the same
    time; returns their results."""
    (tmp_path / "home").mkdir(exist_ok=True)
    run = tiny_run.trained_run(tmp_path)
    image = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(image)
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment |= {"HOME": str(tmp_path / "home")}

    def call(*names: str) -> list[str]:
        command = [sys.executable, "-m", "mrcnn_jax", "predict", run, image, "--out"]
        started = [
            subprocess.Popen([*command, tmp_path / name], env=environment, stderr=subprocess.PIPE, text=True)
            for name in names
        ]
        for process in started:
            _, errors = process.communicate()
            assert process.returncode == 0 and "Warning" not in errors, errors
        return [(tmp_path / name / "results.json").read_text() for name in names]

    return call


def test_two_predictions_at_once_leave_a_usable_cache(processes, tmp_path):
    one, other = processes("one", "other")
    assert one == other and len(one) > 10
    cache = tmp_path / "home" / ".cache" / "mrcnn_jax"

    def stored() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in cache.rglob("programs/*") if file.is_file()}

    before = stored()
    assert len(before) == 2  # the names of arrays, and the program
    assert processes("third") == [one]
    assert stored() == before
