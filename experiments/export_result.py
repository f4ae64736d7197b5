"""python -m experiments.export_result RUN [NAME]: publishes a finished run as a result file,
results/NAME.json."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments._results import RESULTS
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.errors import InputError
from mrcnn_jax.training.logging import SPEED_METRICS

PROGRAM = "python -m experiments.export_result"
PACKAGES = (
    "jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "pycocotools", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Publish a finished run as a result file, on the machine and with the packages of the run."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    name: tyro.conf.Positional[str] = ""
    """Name of the result file; by default that of the directory."""
    command: str = ""
    """Command that made the run; by default `mrcnn train NAME`."""
    note: str = ""
    """Remark that tables of results show."""


def result_of(directory: Path, command: str) -> dict[str, Any]:
    """Returns metrics, settings, time, hardware and history of a finished run; InputError if it is not
    finished."""
    try:
        metrics = json.loads((directory / "metrics.json").read_text())
        config = json.loads((directory / "experiment.json").read_text())
        history = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    except OSError as error:
        raise InputError(f"{directory} is not a finished run: {error.filename} is missing") from error
    training = [line for line in history if "loss" in line]
    batch = config["train"]["images_per_device"] * jax.device_count()
    steps = [line["step"] for line in training]
    rates = [line["images_per_second"] for line in training]  # each over the steps since the line before
    intervals = zip([0, *steps[:-1]], steps, rates, strict=True)
    seconds = sum((step - before) * batch / rate for before, step, rate in intervals)
    device, devices = jax.devices()[0], jax.device_count()
    history = [{name: _short(value) for name, value in line.items() if name not in SPEED_METRICS}
               for line in history]  # fmt: skip
    return {
        "experiment": config["name"],
        "command": command,
        "metrics": metrics,
        "steps": steps[-1],
        "images_per_step": batch,
        "training_seconds": round(seconds),
        "hardware": f"{devices} x {device.device_kind} ({device.platform}), {os.cpu_count()} CPU cores",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "config": config,
        "history": history,
    }


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> int:
    """Writes the result file; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments)
    name = options.name or options.run.resolve().name
    try:
        content = result_of(options.run, options.command or f"mrcnn train {name}")
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    write_json(RESULTS / f"{name}.json", content | ({"note": options.note} if options.note else {}))
    print(f"Wrote {RESULTS / f'{name}.json'}; `python -m experiments.report` adds it to the tables.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
