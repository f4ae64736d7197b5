"""python -m benchmarks.scaling.measure: the training step on 1 to 8 virtual CPU devices, in 1 or 2 processes.

Compares the update with that of one device with all the images, for pmap and shard_map; counts all-reduces
and compiled programs; times steps with a fixed number of images per device (weak scaling). Results go into a
JSON file that `python -m benchmarks.scaling.report` renders. The exit status is 1 if anything was not as
expected.

Each layout runs in processes of its own. Virtual devices share the machine's cores: times show the cost of
distributing the work, not the speed of as many real devices.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro

from benchmarks._program import check, command_line, versions
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError
from tests.slow.training_process import TINY_MODEL, device_environment, free_port

PROGRAM = "python -m benchmarks.scaling.measure"
RESULTS = Path(__file__).parents[1] / "results"
IMAGES = 8  # of the global batch whose updates are compared
MAPPINGS = ("pmap", "shard_map")
ROUNDING = {1: 1e-3, 3: 0.05}
"""Allowed difference of parameters by steps, relative to the largest update in their array. In three steps a
decision that depends on rounding, such as the order of two equal scores, may differ."""
TIMEOUT = 1800


class Layout(NamedTuple):
    """Numbers of processes, and of devices in each."""

    processes: int
    devices: int

    def __str__(self):
        return f"{self.processes} x {self.devices}"


LAYOUTS = (Layout(1, 1), Layout(1, 2), Layout(1, 4), Layout(1, 8), Layout(2, 1), Layout(2, 2))
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Options:
    """Measure updates, communication, compilation and time of the training step on virtual devices."""

    steps: int = 20
    """Timed steps of each layout and mapping; 0 times none."""
    images_per_device: int = 2
    """Images per device of the timed steps."""
    programs: bool = True
    """Count compiled programs and all-reduces."""
    out: Path = RESULTS / "scaling.json"
    """Result file."""


def run_layout(
    layout: Layout, options: Options, folder: Path, arguments: Sequence[str] = TINY_MODEL
) -> tuple[dict[str, Any], Arrays]:
    """Runs the processes of a layout; returns their result, and the parameters before and after the steps.

    Raises:
        InputError: a process failed.
    """
    out = folder / f"layout_{layout.processes}_{layout.devices}"
    settings = {
        "coordinator": f"localhost:{free_port()}" if layout.processes > 1 else "none",
        "processes": layout.processes, "images": IMAGES, "images_per_device": options.images_per_device,
        "steps": options.steps, "programs": options.programs, "arguments": list(arguments), "out": str(out),
    }  # fmt: skip
    environment, workers = device_environment(layout.devices), []
    logs = [folder / f"{out.name}_{process}.log" for process in range(layout.processes)]
    for process, log in enumerate(logs):
        words = json.dumps(settings | {"process": process})
        command = [sys.executable, "-m", "benchmarks.scaling._worker", words]
        with log.open("w") as opened:
            workers.append(subprocess.Popen(command, env=environment, stdout=opened, stderr=opened))
    try:
        deadline = time.monotonic() + TIMEOUT
        for worker, log in zip(workers, logs, strict=True):
            if status := worker.wait(deadline - time.monotonic()):
                output = log.read_text()[-2000:]
                raise InputError(f"a process of {layout} devices gave status {status}: {output}")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    with np.load(out.with_suffix(".npz")) as arrays:
        return json.loads(out.with_suffix(".json").read_text()), dict(arrays)


def differences(arrays: Arrays, one: Arrays, mapping: str, steps: int) -> dict[str, float]:
    """Returns each array's largest difference from one device, relative to its update's largest element."""
    found = {}
    for name in (key.removeprefix("pmap/before/") for key in one if key.startswith("pmap/before/")):
        expected = one[f"pmap/{steps}/{name}"]
        update = np.abs(expected - one[f"pmap/before/{name}"]).max()
        difference = np.abs(arrays[f"{mapping}/{steps}/{name}"] - expected).max()
        found[name] = float(difference / update) if update else float(difference)
    return found


def compare(
    layout: Layout, result: dict[str, Any], arrays: Arrays, one: Arrays
) -> tuple[dict[str, Any], list[str]]:
    """Adds the differences from one device to a layout's result; returns it and what was not as expected."""
    row = {"processes": layout.processes, "devices_per_process": layout.devices, **result}
    failures = []
    for mapping in MAPPINGS:
        for steps, allowed in ROUNDING.items():
            found = differences(arrays, one, mapping, steps)
            worst, median = max(found, key=found.get), float(np.median(list(found.values())))
            row[mapping] |= {
                f"difference_{steps}": found[worst], f"array_{steps}": worst, f"median_{steps}": median,
            }  # fmt: skip
            if found[worst] > allowed:
                after = f"after {steps} steps"
                failures.append(f"{layout}, {mapping}, {after}: {worst} differs by {found[worst]:.1e}")
        compiled = row[mapping].get("compiled", {})
        if any(number != 1 for number in compiled.values()):
            failures.append(f"{layout}, {mapping}: programs compiled by padded size: {compiled}")
    names = [name.removeprefix("pmap/") for name in arrays if name.startswith("pmap/")]
    pairs = ((arrays[f"pmap/{name}"], arrays[f"shard_map/{name}"]) for name in names)
    row["same_bits"] = all(ours.tobytes() == theirs.tobytes() for ours, theirs in pairs)
    failures += [] if row["same_bits"] else [f"{layout}: pmap and shard_map differ"]
    if row.pop("devices") != layout.processes * layout.devices:
        failures.append(f"{layout}: there were {result['devices']} devices")
    return row, failures


def measure(
    options: Options, folder: Path, report: Callable[[str], None], layouts: Sequence[Layout] = LAYOUTS
) -> dict[str, Any]:
    """Measures all layouts, the first being one device; "failures" lists all that was not as expected."""
    rows, failures, one = [], [], {}
    for layout in layouts:
        result, arrays = run_layout(layout, options, folder)
        one = one or arrays
        row, found = compare(layout, result, arrays, one)
        rows.append(row)
        failures += found
        report(f"{layout} devices: {'; '.join(found) or 'as expected'}")
    return {
        "command": command_line(PROGRAM, options), "versions": versions("jax", "flax", "optax", "numpy"),
        "hardware": f"virtual CPU devices, {os.cpu_count()} CPU cores",
        "images": IMAGES, "images_per_device": options.images_per_device, "steps": options.steps,
        "rounding": ROUNDING, "arguments": TINY_MODEL, "rows": rows, "failures": failures,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Writes the result file; returns the exit status."""
    options = tyro.cli(Options, prog=PROGRAM, args=arguments, description=Options.__doc__)
    try:
        check(options, steps=0, images_per_device=1)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder), lambda line: print(line, file=sys.stderr, flush=True))
        write_json(options.out, result)
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    for failure in result["failures"]:
        print(f"{PROGRAM}: {failure}", file=sys.stderr)
    print(f"Wrote {options.out}: {len(result['failures'])} failures.")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
