"""python -m benchmarks.tpu.compile_train_step --topology v5e:16x16 --experiment mask_rcnn_r50_fpn [--train.FIELD ...] ...: does a train step fit a slice of TPUs?

Compiles the whole step, with its data shapes, losses, optimiser and all-reduce, for every chip of the slice, on a machine without a TPU (pip install "jax[tpu]"), and
says what a chip needs: HBM, FLOPs, what travels between chips, and what that leads one to expect of its speed. Nothing is allocated and nothing runs.
Exit status: 0 if it fits, 1 if not, 2 if something given is wrong.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu shall compile, not look for a TPU

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from benchmarks.model.train_step import made_up_batch
from benchmarks.tpu._estimate import assumptions, chip_of, estimate_step, reduction, used_bytes
from benchmarks.tpu._hlo import all_reduces, estimated_cycles
from benchmarks.tpu._programs import GIB, Program, compile_for, figures, first_sentence, topology
from benchmarks.tpu._step_flops import step_flops
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json, write_text
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.step import create_state, make_train_step

PROGRAM = "python -m benchmarks.tpu.compile_train_step"
CLASSES, KEYPOINTS = 80, 17
"""Of COCO, where an experiment takes them from its data set."""


@dataclass(frozen=True)
class Options:
    """What to compile for, and what to keep."""

    experiment: str = "mask_rcnn_r50_fpn"
    """One that `mrcnn train` lists."""
    topology: tuple[str, ...] = ("v5e:16x16",)
    """Slices of TPUs: v4, v5e, v5p or v6e and the sides of the slice, such as v5e:2x4, v4:2x2x2, v5p:4x8x8."""
    effort: float = 0.0
    """Of the compiler, from -1 to 0. 0 compiles the very program that a run has; -1 takes about a third of the time, for a program that is much slower and needs about
    as much memory: compile with 0 where little is left."""
    out: Path | None = None
    """A JSON file for the figures, written again after every slice."""
    add: bool = False
    """Keep the rows of this file that are not compiled again; without this only what is compiled now is in it."""
    text: Path | None = None
    """A file for the compiled program (HLO text, large) of the last slice."""


def parse(arguments: list[str]) -> tuple[Options, Experiment, dict[str, Any]]:
    """Options, the experiment, and which of its fields were given, with their values."""
    first = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    first.add_argument("--experiment", default=Options.experiment)  # whose fields the others change
    named = presets.get(first.parse_known_args(arguments)[0].experiment)
    base = replace(named, train=replace(named.train, dtype="bfloat16"))

    def command(options: Annotated[Options, tyro.conf.arg(name="")], experiment: Annotated[Experiment, tyro.conf.arg(name="")]):
        return options, experiment

    command.__defaults__ = (replace(Options(), experiment=named.name), base)
    options, experiment = tyro.cli(command, prog=PROGRAM, description=__doc__.partition("\n")[2].strip(), args=arguments)
    before, after = _fields(to_dict(base)), _fields(to_dict(experiment))
    return options, experiment, {field: value for field, value in after.items() if before.get(field, ...) != value}


def step_and_arguments(experiment: Experiment, devices: list[jax.Device]) -> tuple[Any, tuple[Any, Any]]:
    """The train step for devices and the shapes of its state and its batch, as a run on them would have them."""
    model = experiment.model
    keypoints = replace(model.keypoint, num_keypoints=model.keypoint.num_keypoints or KEYPOINTS)
    experiment = replace(experiment, model=replace(model, num_classes=model.num_classes or CLASSES, keypoint=keypoints))
    config = experiment.train
    model = MaskRCNN(experiment.model, jnp.dtype(config.dtype), config.remat)
    optimizer = make_optimizer(config, experiment.model, config.images_per_device * len(devices))
    state = jax.eval_shape(lambda: create_state(initialise(model, jax.random.key(0)), optimizer))
    of_one = made_up_batch(experiment, devices=1, objects=1)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((len(devices), *leaf.shape[1:]), leaf.dtype), of_one)
    return make_train_step(model, optimizer, experiment, devices=devices), (state, batch)


def compile_step(experiment: Experiment, slice_name: str, effort: float = 0.0) -> tuple[dict[str, Any], str]:
    """The figures of the step on a slice, and the program's text. One that does not fit has the reason as ``unavailable`` and no text."""
    devices, config = list(topology(slice_name)), experiment.train
    row = {
        "topology": slice_name, "chips": len(devices), "experiment": experiment.name, "images_per_chip": config.images_per_device,
        "image_size": padded_size(experiment.data, portrait=False), "dtype": config.dtype, "parallel": config.parallel, "accumulate": config.accumulate,
        "remat": config.remat, "reduce_dtype": config.reduce_dtype, "effort": effort,
    }  # fmt: skip
    row["product_flops"] = _product_flops(experiment)
    step, arguments = step_and_arguments(experiment, devices)
    begin = time.process_time()
    try:
        with compiler_effort(effort):
            program = compile_for(step, arguments)
    except (RuntimeError, NotImplementedError) as error:
        return row | {"unavailable": first_sentence(error), "missing_bytes": missing_bytes(str(error))}, ""
    row["compile_cpu_seconds"] = round(time.process_time() - begin)
    return row | program_figures(program), program.compiled.as_text()


@contextmanager
def compiler_effort(effort: float) -> Iterator[None]:
    """How hard the compiler tries to make programs fast, from -1 to 0, jax's own setting."""
    before = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", effort)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)


def program_figures(program: Program) -> dict[str, Any]:
    """Those of ``figures`` with the all-reduces, as pairs of arrays and bytes, and the compiler's cycles."""
    text = program.compiled.as_text()
    return figures(program) | {"all_reduces": all_reduces(text), "cycles": estimated_cycles(text)}


@lru_cache(maxsize=4)
def _product_flops(experiment):
    step, arguments = step_and_arguments(experiment, jax.devices()[:1])  # what one device computes does not depend on their number
    return step_flops(step, arguments, experiment)


def missing_bytes(message: str) -> int | None:
    """How much more HBM a chip would need, by a compiler's refusal; None if that is not why it refuses."""
    used = re.search(r"(?:Used|required for [\w ]+ \()\s*([\d.]+)([MGT])\)?.*?(?:of|available HBM \()\s*([\d.]+)([MGT])", message)
    if not used:
        return None
    needs, has = (float(number) * {"M": 2**20, "G": 2**30, "T": 2**40}[unit] for number, unit in (used.group(1, 2), used.group(3, 4)))
    return max(0, round(needs - has))


def describe(row: dict[str, Any]) -> str:
    """A row in words."""
    height, width = row["image_size"]
    settings = [
        row["dtype"],
        row["parallel"],
        f"accumulate {row['accumulate']}",
        "remat" if row["remat"] else "no remat",
        f"gradients travel in {row['reduce_dtype']}",
    ]
    settings += [] if row["effort"] == 0 else [f"compiled with effort {row['effort']:g}, not a run's 0"]
    title = f"{row['experiment']} on {row['topology']}: {row['chips']} chips, each {row['images_per_chip']} images of {height} x {width}; {', '.join(settings)}"
    chip, used, travels, expected = chip_of(row), used_bytes(row), reduction(row), estimate_step(row)
    parts = [f"{name} {row[f'{key}_bytes'] / GIB:.2f}" for name, key in
             (("arguments", "argument"), ("outputs", "output"), ("- shared by both", "alias"), ("temporaries", "temp"), ("program", "code"))]  # fmt: skip
    cycles = "" if expected.cycles_ms is None else f"; {expected.cycles_ms:.1f} ms by the compiler's cycles"
    all_links, one_link = expected.reduce_ms
    low, high = expected.scaling
    images = 1e3 * row["images_per_chip"] / expected.least_ms
    lines = {
        "HBM of a chip": f"{used / GIB:.2f} GiB used ({', '.join(parts)}), {(chip.available - used) / GIB:.2f} of {chip.available / GIB:.2f} free",
        "FLOPs of a chip": f"{row['product_flops'] / 1e12:.3f} T a step in convolutions and matrix products; {row['flops'] / 1e12:.3f} T by XLA's count",
        "bytes accessed": f"{row['bytes_accessed'] / 1e9:.1f} GB by XLA's count, in HBM or in the core's own memory",
        "all-reduce": f"{travels.gradient_operations} of gradients, {travels.gradient_bytes / 1e6:.1f} MB; "
        f"{travels.other_operations} small ones, {travels.other_bytes:,} bytes",
        "a step": f"at least {expected.least_ms:.1f} ms{cycles}; and {all_links:.2f} to {one_link:.2f} ms for the all-reduce",
        "images a second": f"at most {images:,.0f} a chip, {images * row['chips']:,.0f} in all",
        "scaling": f"{100 * low:.0f} to {100 * high:.0f} % of what the chips would do without the all-reduce",
        "compiled in": f"{row['compile_seconds']:.0f} s, which took {row['compile_cpu_seconds']:,} s of a CPU core",
    }
    return "\n".join([title, *(f"  {name:<16} {text}" for name, text in lines.items())])


def run(options: Options, experiment: Experiment, changes: dict[str, Any]) -> int:
    """Compiles for every slice, prints and writes; returns the exit status."""
    if not -1 <= options.effort <= 0:
        raise InputError(f"--effort must lie between -1 and 0, not {options.effort:g}")
    for name in options.topology:  # what is wrong is said before anything is compiled
        topology(name)
    status, add = 0, options.add
    if options.out and add:
        read_rows(options.out)
    for name in options.topology:
        row, text = compile_step(experiment, name, options.effort)
        row |= {"changes": changes, "jax": jax.__version__, "libtpu": version("libtpu")}
        if options.out:
            rows = [old for old in read_rows(options.out) if _identity(old) != _identity(row)] if add else []
            write_json(options.out, {"rows": [*rows, row]})
            add = True
        if options.text and text:
            write_text(options.text, text)
        if "unavailable" in row:
            print(f"{experiment.name} is refused for {name}: {row['unavailable']}.{_advice(row['missing_bytes'])}", file=sys.stderr)
            status = 1
        else:
            print(describe(row), flush=True)
    if not status:
        print("\n" + assumptions(), end="")
    return status


def _advice(missing):
    if missing is None:
        return ""
    return (f" {missing / GIB:.2f} GiB a chip are missing: a smaller --train.images-per-device, --train.remat, or a larger --train.accumulate, which goes through the "
            "images in parts, takes less.")  # fmt: skip


def _identity(row):
    return row["topology"], row["experiment"], row["effort"], json.dumps(row["changes"], sort_keys=True)


def _fields(values, prefix=""):
    """Nested dictionaries as one, with dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _fields(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file, none if there is no such file yet; InputError if it is something else."""
    try:
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        return [row for row in rows if _identity(row)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file of {PROGRAM}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """The program; returns the exit status."""
    try:
        return run(*parse(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        print(error, file=sys.stderr)
        return exit_status(error)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # compile seconds are those of a machine that sees the program for the first time
    sys.exit(main())
