"""python -m benchmarks.scaling.measure [--steps N] [--out FILE]: the train step on 1 to 8 virtual CPU devices, in one process and in two.

Whether it makes the update that one device makes with all the images, for pmap and for shard_map; what travels between devices, from the compiled
program; what is compiled over images of both padded sizes and any number of objects; and what a step takes where every device has as many images.
The figures go into a JSON file, which `python -m benchmarks.scaling.report` renders. The exit status is 1 if anything was not as it should be.

Each layout runs in processes of its own (benchmarks.scaling._worker). Virtual devices share the cores of the machine: times say what is lost by
spreading the work, not how much faster it would be on so many real devices.
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
from tests.slow.training_process import CLOSE_TO_NOTHING, free_port

PROGRAM = "python -m benchmarks.scaling.measure"
RESULTS = Path(__file__).parents[1] / "results"
ROOT = Path(__file__).parents[2]
IMAGES = 8  # of the global batch whose updates are compared
FORMS = ("pmap", "shard_map")
ROUNDING = {1: 1e-3, 3: 0.05}
"""What parameters may differ by after so many steps, as a share of their array's largest update. In three steps a decision that hangs on rounding,
such as which of two equal scores comes first or on which side of a ReLU's kink a value lies, may go the other way."""
PATIENCE = 1800


class Layout(NamedTuple):
    """So many processes with so many devices each."""

    processes: int
    devices: int

    def __str__(self):
        return f"{self.processes} x {self.devices}"


LAYOUTS = (Layout(1, 1), Layout(1, 2), Layout(1, 4), Layout(1, 8), Layout(2, 1), Layout(2, 2))


@dataclass(frozen=True)
class Options:
    """Measure updates, traffic, compilation and time of the train step on virtual devices."""

    steps: int = 20
    """Steps that are timed, of each layout and form; 0 times none."""
    images_per_device: int = 2
    """Of the steps that are timed."""
    programs: bool = True
    """Also count what is compiled over images of both sizes, and what travels between devices."""
    out: Path = RESULTS / "scaling.json"


def run_layout(layout: Layout, options: Options, folder: Path, arguments: Sequence[str] = CLOSE_TO_NOTHING) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The figures of a layout, and the parameters before and after its steps. InputError, with what a process said, where one failed."""
    out, port = folder / f"layout_{layout.processes}_{layout.devices}", free_port()
    settings = {
        "coordinator": f"localhost:{port}" if layout.processes > 1 else "none", "processes": layout.processes, "images": IMAGES,
        "images_per_device": options.images_per_device, "steps": options.steps, "programs": options.programs,
        "arguments": list(arguments), "out": str(out),
    }  # fmt: skip
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={layout.devices} --xla_cpu_experimental_ynn_fusion_type="
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    workers, logs = [], []
    for process in range(layout.processes):
        log = folder / f"{out.name}_{process}.log"
        with log.open("w") as opened:
            command = [sys.executable, "-m", "benchmarks.scaling._worker", json.dumps(settings | {"process": process})]
            workers.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=opened, stderr=opened))
        logs.append(log)
    try:
        deadline = time.monotonic() + PATIENCE
        for worker, log in zip(workers, logs, strict=True):
            if worker.wait(deadline - time.monotonic()):
                raise InputError(f"a process of {layout} devices ended with status {worker.returncode}: {log.read_text()[-2000:]}")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    with np.load(out.with_suffix(".npz")) as arrays:
        return json.loads(out.with_suffix(".json").read_text()), dict(arrays)


def differences(arrays: dict[str, np.ndarray], one: dict[str, np.ndarray], form: str, after: int) -> dict[str, float]:
    """For each parameter array, how far it is at most from one device's after so many steps, as a share of the largest element of its update."""
    found = {}
    for name in (key.removeprefix("pmap/before/") for key in one if key.startswith("pmap/before/")):
        expected = one[f"pmap/{after}/{name}"]
        update = np.abs(expected - one[f"pmap/before/{name}"]).max()
        difference = np.abs(arrays[f"{form}/{after}/{name}"] - expected).max()
        found[name] = float(difference / update) if update else float(difference)
    return found


def compare(layout: Layout, figures: dict[str, Any], arrays: dict[str, np.ndarray], one: dict[str, np.ndarray]) -> tuple[dict[str, Any], list[str]]:
    """A layout's figures with what its updates differ by from those of one device, and what is not as it should be."""
    row = {
        "processes": layout.processes,
        "devices_per_process": layout.devices,
        "parameters": figures["parameters"],
        **{form: figures[form] for form in FORMS},
    }
    failures = []
    for form in FORMS:
        for after in (1, 3):
            found = differences(arrays, one, form, after)
            worst = max(found, key=found.get)
            row[form] |= {f"difference_{after}": found[worst], f"array_{after}": worst, f"median_{after}": float(np.median(list(found.values())))}
            if found[worst] > ROUNDING[after]:
                failures.append(f"{layout}, {form}, after {after} steps: {worst} differs by {found[worst]:.1e} of its update")
        if "compiled" in row[form] and list(row[form]["compiled"].values()) != [1, 1]:
            failures.append(f"{layout}, {form}: programs compiled by padded size: {row[form]['compiled']}")
    names = [name.removeprefix("pmap/") for name in arrays if name.startswith("pmap/")]
    row["same_bits"] = all(arrays[f"pmap/{name}"].tobytes() == arrays[f"shard_map/{name}"].tobytes() for name in names)
    if not row["same_bits"]:
        failures.append(f"{layout}: pmap and shard_map differ")
    if figures["devices"] != layout.processes * layout.devices:
        failures.append(f"{layout}: there were {figures['devices']} devices")
    return row, failures


def measure(options: Options, folder: Path, say: Callable[[str], None], layouts: Sequence[Layout] = LAYOUTS) -> dict[str, Any]:
    """All figures, and under "failures" a sentence for whatever was not as it should be. The first layout is a single device."""
    rows, failures, one = [], [], {}
    for layout in layouts:
        begin = time.monotonic()
        figures, arrays = run_layout(layout, options, folder)
        one = one or arrays
        row, found = compare(layout, figures, arrays, one)
        rows.append(row)
        failures += found
        say(f"{layout} devices: {'; '.join(found) or 'as it should be'} ({time.monotonic() - begin:.0f} s)")
    return {
        "command": command_line(PROGRAM, options),
        "versions": versions("jax", "flax", "optax", "numpy"),
        "hardware": f"virtual CPU devices, {os.cpu_count()} CPU cores",
        "images": IMAGES, "images_per_device": options.images_per_device, "steps": options.steps, "rounding": ROUNDING,
        "arguments": CLOSE_TO_NOTHING, "rows": rows, "failures": failures,
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
