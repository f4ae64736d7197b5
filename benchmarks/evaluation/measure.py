"""python -m benchmarks.evaluation.measure: an evaluation from predictions to metrics, without the network.

Predictions and ground truth are made up with the numbers and sizes of COCO's. With `--against DIR`, a
checkout of another revision, both are measured on fewer images, must give the same metrics, and stand beside
pycocotools alone.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._program import RESULTS, check, command_line, processor, rounded, versions, write_files
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.evaluation.measure"


@dataclass(frozen=True)
class Options:
    """Measure the evaluation of made-up predictions on one core."""

    images: int = 5000
    """Number of images, each with 100 detections."""
    compared_images: int = 500
    """Number of images on which revisions and pycocotools are compared."""
    rounds: int = 7
    """Measurements of pasting the masks of one image, of which the median counts."""
    against: Path | None = None
    """Checkout of another revision."""
    out: Path = RESULTS / "evaluation.json"
    """JSON file of the results."""


def run_stage(checkout: Path, *words: object) -> dict[str, Any]:
    """Runs a stage with the library in ``checkout``, on one core."""
    script = Path(__file__).with_name("_stages.py")
    environment = os.environ | {"PYTHONPATH": str(checkout), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise InputError(f"{script.name} {' '.join(command[2:])} fails:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def run(options: Options) -> list[Path]:
    """Runs the benchmark; returns the files written."""
    check(options, images=1, compared_images=1, rounds=1)
    this = Path(__file__).parents[2]
    result = {
        "command": command_line(PROGRAM, options),
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions("numpy", "pycocotools"), "date": time.strftime("%Y-%m-%d"),
        "images": options.images, "this": run_stage(this, "evaluate", options.images),
        "report": run_stage(this, "report", options.images),
        "paste": {"this": run_stage(this, "paste", options.rounds)},
    }  # fmt: skip
    if options.against:
        other = options.against.absolute()
        result["paste"]["other"] = run_stage(other, "paste", options.rounds)
        compared = {
            "images": options.compared_images,
            "this": run_stage(this, "evaluate", options.compared_images, "pycocotools"),
            "other": run_stage(other, "evaluate", options.compared_images),
        }
        if compared["this"]["metrics"] != compared["other"]["metrics"]:
            raise RuntimeError(f"{other} computes other metrics")
        result["compared"] = compared
    write_json(options.out, _rounded(result))
    return [options.out]


def _rounded(value: Any) -> Any:
    """Rounds measured numbers; leaves out the AP of each class."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items() if key != "per_class"}
    return rounded(value) if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
