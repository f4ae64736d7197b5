"""python -m experiments.export_result RUN [NAME]: turns a finished run into a result file, results/NAME.json."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError
from mrcnn_jax.training.logging import SPEED

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "pycocotools", "numpy")


def result(directory: Path, command: str) -> dict[str, Any]:
    """What a finished run reached and how. Call it on the machine, and with the packages, of the run."""
    try:
        metrics = json.loads((directory / "metrics.json").read_text())
        config = json.loads((directory / "experiment.json").read_text())
        history = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    except OSError as error:
        raise InputError(f"{directory} is not a finished run: {error.filename} is missing") from error
    training = [line for line in history if "loss" in line]
    batch = config["train"]["images_per_device"] * jax.device_count()
    # each line speaks of the steps since the line before it
    steps = [line["step"] for line in training]
    seconds = sum((now - before) * batch / line["images_per_second"] for before, now, line in zip([0, *steps], steps, training, strict=False))
    device = jax.devices()[0]
    return {
        "experiment": config["name"],
        "command": command,
        "metrics": metrics,
        "steps": steps[-1],
        "images_per_step": batch,
        "training_seconds": round(seconds),
        "hardware": f"{jax.device_count()} x {device.device_kind} ({device.platform}), {os.cpu_count()} CPU cores",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "config": config,
        "history": [{name: _short(value) for name, value in line.items() if name not in SPEED} for line in history],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: list[str]) -> int:
    """Writes the result file; returns the exit status."""
    if len(arguments) not in (1, 2, 3) or arguments[0].startswith("-"):
        print(f"usage: {__doc__}\nA third argument is the command that made the run, where it was not `mrcnn train NAME`.", file=sys.stderr)
        return 2
    directory = Path(arguments[0])
    name = arguments[1] if len(arguments) > 1 else directory.name
    command = arguments[2] if len(arguments) > 2 else f"mrcnn train {name}"
    try:
        content = result(directory, command)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    write_json(RESULTS / f"{name}.json", content)
    print(f"Wrote {RESULTS / f'{name}.json'}; `python -m experiments.report` renders it.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
