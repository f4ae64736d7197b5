"""python -m benchmarks.model.measure: speed of whole detectors, inference and training, beside torchvision.

On a CPU ten minutes suffice; on an accelerator --budget 800 measures what fits into a quarter of an hour,
the most important first. Results are written after every round, and --resume continues with them. torchvision
has the same weights, images and frozen stages; rounds are interleaved: one run of ours, one of each variant
of torchvision, and a large matrix product, which gives the peak.

torchvision runs in a process of its own, by the Python in MRCNN_TORCHVISION_PYTHON if it is not in this one.
Its weights are random, with batch norm frozen to the statistics of the images; the score threshold lets 1,000
pairs of box and class through in every image, of which 100 are detected. Images are photos if
MRCNN_TEST_DATA is set, stretched to the size before, so that they are only padded.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU must also hold torch's arrays

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax

from benchmarks import _torchvision
from benchmarks._program import RESULTS, command_line, machine, write_files
from benchmarks.model import report
from benchmarks.model._cases import Case, Models, Row, is_complete, measure, new_row
from benchmarks.roi import measure as roi
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError
from mrcnn_jax.runtime import enable_compilation_cache

PROGRAM = "python -m benchmarks.model.measure"


@dataclass(frozen=True)
class Options:
    """Measure whole detectors, in inference and training, beside torchvision."""

    model: tuple[Literal[*presets.PRESETS], ...] = ("mask_rcnn_r50_fpn",)
    """Presets."""
    work: tuple[Literal["inference", "training"], ...] = ("inference", "training")
    """Inference, training or both."""
    batch: tuple[int, ...] = ()
    """Images of a batch; by default 1, on accelerators also 8."""
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ()
    """Precision; by default float32, on accelerators first bfloat16."""
    size: tuple[int, int] = (800, 1333)
    """Height and width of the images."""
    objects: int = 8
    """Objects of a training image."""
    rounds: int = 5
    """Interleaved runs of which medians are taken."""
    stages: bool = True
    """Measure the stages, too, with the first batch size and precision."""
    torchvision: bool = True
    """Measure torchvision, where it is installed."""
    roi_minutes: float = 0
    """Minutes for the RoI operations (benchmarks.roi.measure), after the cases of the first batch size."""
    budget: float = 3600
    """Seconds after which nothing new begins."""
    resume: bool = False
    """Continue with the result file of the same machine, versions and images."""
    out: Path = RESULTS
    """Folder of the result file, model_PLATFORM.json, and of its page."""


def plan(options: Options) -> list[Case]:
    """Returns the cases, the most important first."""
    is_cpu = jax.default_backend() == "cpu"
    batches = options.batch or ((1,) if is_cpu else (1, 8))
    dtypes = options.dtype or (("float32",) if is_cpu else ("bfloat16", "float32"))
    return [Case(*values) for values in product(batches, dtypes, options.model, options.work)]


def describe(options: Options, torchvision: _torchvision.Torchvision | None) -> dict[str, Any]:
    """Describes the machine, the versions, the library's last commit, and the images."""
    log = ["git", "log", "-1", "--format=%h", "--", "../../mrcnn_jax"]
    commit = subprocess.run(log, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    images = "photos" if os.environ.get("MRCNN_TEST_DATA") else "noise"
    found = machine(torchvision) | {"commit": commit, "images": images}
    return found | {"size": list(options.size), "objects": options.objects}


def measure_all(options: Options, models: Models, rows: list[Row]) -> Iterator[str]:
    """Measures all cases within the budget, yielding after each round what was done."""
    end, cases = time.monotonic() + options.budget, plan(options)
    last_of_first = [case for case in cases if case.batch == cases[0].batch][-1]
    for case in cases:
        row = next((row for row in rows if vars(case).items() <= row.items()), None)
        if row is None:
            rows.append(row := new_row(case))
        stages = options.stages and (case.batch, case.dtype) == (cases[0].batch, cases[0].dtype)
        if not is_complete(row, options.rounds, stages):
            rounds = measure(case, row, models, options.objects, options.rounds, stages)
            while time.monotonic() < end and next(rounds, None):
                done = (len(row[kind].get("ours", [])) for kind in ("seconds", "stages"))
                yield "{}: {} rounds, {} of the stages".format(case, *done)
        if case == last_of_first and options.roi_minutes and time.monotonic() < end:
            roi.run(roi.Options(minutes=options.roi_minutes, out=options.out))


def run(options: Options) -> list[Path]:
    """Measures, writing the result file after every round, and renders it; returns the files."""
    for name, bound in {"batch": 1, "size": 64, "objects": 1, "rounds": 1}.items():
        given = getattr(options, name)
        if min(given if isinstance(given, tuple) else (given,), default=bound) < bound:
            raise InputError(f"--{name} is {given}, but must be {bound} or more")
    platform, torchvision = jax.default_backend(), None
    if options.torchvision:
        torchvision = _torchvision.start("benchmarks.model._torchvision", platform)
    out, rows, about = options.out / f"model_{platform}.json", [], describe(options, torchvision)
    if options.resume and out.exists():
        content = json.loads(out.read_text())
        if content["machine"] != about:
            raise InputError(f"{out} is of {content['machine']}, not {about}: measure without --resume")
        rows = content["rows"]
    enable_compilation_cache()
    models = Models(max(case.batch for case in plan(options)), options.size, torchvision)
    content = {"machine": about, "command": command_line(PROGRAM, options, ["resume"]), "rows": rows}
    for done in measure_all(options, models, rows):
        print(done, flush=True)
        write_json(out, content)
    if torchvision:
        torchvision.close()
    write_json(out, content)
    return [out, *report.render(options.out)]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
