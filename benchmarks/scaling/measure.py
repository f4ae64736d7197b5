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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from benchmarks._program import RESULTS, check, command_line, versions, write_files
from benchmarks.scaling._processes import TINY_MODEL, device_environment, free_port
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.scaling.measure"
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
Arrays = dict[str, dict[str, dict[str, np.ndarray]]]
"""Parameters by mapping, by steps made ("before", "1" and "3"), and by name."""


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
    environment, workers = device_environment(layout.devices), {}
    for process in range(layout.processes):
        words, log = json.dumps(settings | {"process": process}), folder / f"{out.name}_{process}.log"
        command = [sys.executable, "-m", "benchmarks.scaling._worker", words]
        with log.open("w") as opened:
            workers[log] = subprocess.Popen(command, env=environment, stdout=opened, stderr=opened)
    try:
        deadline = time.monotonic() + TIMEOUT
        for log, worker in workers.items():
            if status := worker.wait(deadline - time.monotonic()):
                output = log.read_text()[-2000:]
                raise InputError(f"a process of {layout} devices gave status {status}: {output}")
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    with np.load(out.with_suffix(".npz")) as arrays:
        return json.loads(out.with_suffix(".json").read_text()), unflatten_dict(dict(arrays), sep="/")


def differences(arrays: Arrays, one: Arrays, mapping: str, steps: int) -> dict[str, float]:
    """Returns each array's largest difference from one device, relative to its update's largest element."""
    found, before = {}, one["pmap"]["before"]
    for name, expected in one["pmap"][str(steps)].items():
        difference = np.abs(arrays[mapping][str(steps)][name] - expected).max()
        found[name] = float(difference / (np.abs(expected - before[name]).max() or 1))
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
    pairs = zip(*(jax.tree.leaves(arrays[mapping]) for mapping in MAPPINGS), strict=True)
    row["same_bits"] = all(ours.tobytes() == theirs.tobytes() for ours, theirs in pairs)
    failures += [] if row["same_bits"] else [f"{layout}: pmap and shard_map differ"]
    if row.pop("devices") != layout.processes * layout.devices:
        failures.append(f"{layout}: there were {result['devices']} devices")
    return row, failures


def measure(options: Options, layouts: Sequence[Layout] = LAYOUTS) -> dict[str, Any]:
    """Measures all layouts, the first being one device; "failures" lists all that was not as expected."""
    rows, failures, one = [], [], {}
    for layout in layouts:
        with tempfile.TemporaryDirectory() as folder:
            result, arrays = run_layout(layout, options, Path(folder))
        one = one or arrays
        row, found = compare(layout, result, arrays, one)
        rows.append(row)
        failures += found
        print(f"{layout} devices: {'; '.join(found) or 'as expected'}", file=sys.stderr, flush=True)
    return {
        "command": command_line(PROGRAM, options), "versions": versions("jax", "flax", "optax", "numpy"),
        "hardware": f"virtual CPU devices, {os.cpu_count()} CPU cores",
        "images": IMAGES, "images_per_device": options.images_per_device, "steps": options.steps,
        "rounding": ROUNDING, "arguments": TINY_MODEL, "rows": rows, "failures": failures,
    }  # fmt: skip


def run(options: Options) -> list[Path]:
    """Measures and writes the result file; ends the program with status 1 if anything was not as expected."""
    check(options, steps=0, images_per_device=1)
    result = measure(options)
    write_json(options.out, result)
    if result["failures"]:
        sys.exit("\n".join([f"Wrote {options.out}, but not all was as expected:", *result["failures"]]))
    return [options.out]


def main(arguments: list[str] | None = None) -> int:
    """Writes the result file; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
