"""python -m benchmarks.tpu.compile_train_step --topology v5e:16x16 --experiment mask_rcnn_r50_fpn
[--train.FIELD ...]

Compiles the whole training step (data shapes, losses, optimizer and all-reduce) for every chip of a TPU
slice, on a machine without a TPU (pip install "jax[tpu]"), and prints what a chip needs: HBM, FLOPs, traffic
between chips, and estimates of its speed. Nothing is allocated and nothing runs. Exit status: 0 if it fits, 1
if not, 2 for invalid input.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported: libtpu only compiles

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from benchmarks.tpu._compile_step import compile_step
from benchmarks.tpu._estimate import assumptions, chip_of, estimate_step, free_bytes, reduction, used_bytes
from benchmarks.tpu._programs import GIB, topology
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json, write_text
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.tpu.compile_train_step"


@dataclass(frozen=True)
class Options:
    """Slices, compiler effort and files."""

    experiment: str = "mask_rcnn_r50_fpn"
    """Name of a preset; `mrcnn train` lists them."""
    topology: tuple[str, ...] = ("v5e:16x16",)
    """TPU slices: v4, v5e, v5p or v6e and the sides of the slice, such as v5e:2x4, v4:2x2x2, v5p:4x8x8."""
    effort: float = 0.0
    """Compiler effort, from -1 to 0. 0 compiles the program of a run; -1 takes a third of the time, for a
    much slower program that needs about as much memory: use 0 where little memory is left."""
    out: Path | None = None
    """JSON file for the figures, written after every slice."""
    add: bool = False
    """Keep the other rows of this file, instead of starting it anew."""
    text: Path | None = None
    """File for the compiled program of the last slice (HLO text, large)."""


def parse(arguments: list[str]) -> tuple[Options, Experiment, dict[str, Any]]:
    """Returns options, the experiment, and the fields that were given, with their values."""
    first = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    first.add_argument("--experiment", default=Options.experiment)  # the other options change its fields
    named = presets.get(first.parse_known_args(arguments)[0].experiment)
    base = replace(named, train=replace(named.train, dtype="bfloat16"))

    def command(
        options: Annotated[Options, tyro.conf.arg(name="")],
        experiment: Annotated[Experiment, tyro.conf.arg(name="")],
    ):
        return options, experiment

    command.__defaults__ = (replace(Options(), experiment=named.name), base)
    description = __doc__.partition("\n")[2].strip()
    options, experiment = tyro.cli(command, prog=PROGRAM, description=description, args=arguments)
    before, after = _flat(to_dict(base)), _flat(to_dict(experiment))
    changes = {name: value for name, value in after.items() if before.get(name, ...) != value}
    return options, experiment, changes


def describe(row: Mapping[str, Any]) -> str:
    """Returns a row in words."""
    (height, width), remat = row["image_size"], "remat" if row["remat"] else "no remat"
    settings = (f"{row['dtype']}, {row['parallel']}, accumulate {row['accumulate']}, {remat}, "
                f"gradients reduced in {row['reduce_dtype']}")  # fmt: skip
    if row["effort"]:
        settings += f", compiled with effort {row['effort']:g} (a run has 0)"
    title = (f"{row['experiment']} on {row['topology']}: {row['chips']} chips with "
             f"{row['images_per_chip']} images of {height} x {width} each; {settings}")  # fmt: skip
    reduced, expected = reduction(row), estimate_step(row)
    names = {"arguments": "argument", "outputs": "output", "- shared by both": "alias", "temporaries": "temp",
             "program": "code"}  # fmt: skip
    parts = ", ".join(f"{name} {row[f'{key}_bytes'] / GIB:.2f}" for name, key in names.items())
    used, free, available = used_bytes(row) / GIB, free_bytes(row) / GIB, chip_of(row).available / GIB
    cycles = "" if expected.cycles_ms is None else f"; {expected.cycles_ms:.1f} ms by the compiler's cycles"
    reduce = "all-reduce {:.2f} to {:.2f} ms".format(*expected.reduce_ms)
    images = 1e3 * row["images_per_chip"] / expected.least_ms
    lines = {
        "HBM per chip": f"{used:.2f} GiB used ({parts}), {free:.2f} of {available:.2f} free",
        "FLOPs per chip": f"{row['product_flops'] / 1e12:.3f} T per step in convolutions and products; "
        f"{row['flops'] / 1e12:.3f} T by XLA's count",
        "bytes accessed": f"{row['bytes_accessed'] / 1e9:.1f} GB by XLA's count, in HBM or within the core",
        "all-reduce": f"{reduced.gradient_operations} of gradients, {reduced.gradient_bytes / 1e6:.1f} MB; "
        f"{reduced.other_operations} small ones, {reduced.other_bytes:,} bytes",
        "step": f"at least {expected.least_ms:.1f} ms{cycles}; {reduce}",
        "images per second": f"at most {images:,.0f} per chip, {images * row['chips']:,.0f} in all",
        "scaling": "{:.0f} to {:.0f} % of the speed without the all-reduce".format(
            *(100 * share for share in expected.scaling)
        ),
        "compilation": f"{row['compile_seconds']:.0f} s, {row['compile_cpu_seconds']:,} s of CPU time",
    }
    return "\n".join([title, *(f"  {name:<17} {text}" for name, text in lines.items())])


def run(options: Options, experiment: Experiment, changes: dict[str, Any]) -> int:
    """Compiles for every slice, prints and writes; returns the exit status."""
    if not -1 <= options.effort <= 0:
        raise InputError(f"--effort is {options.effort:g}, but must be between -1 and 0")
    for name in options.topology:  # invalid ones are refused before anything is compiled
        topology(name)
    rows, status = read_rows(options.out) if options.out and options.add else [], exit_codes.OK
    for name in options.topology:
        row, text = compile_step(experiment, name, options.effort)
        row |= {"changes": changes, "jax": jax.__version__, "libtpu": version("libtpu")}
        rows = [old for old in rows if _identity(old) != _identity(row)] + [row]
        if options.out:
            write_json(options.out, {"rows": rows})
        if options.text and text:
            write_text(options.text, text)
        if "unavailable" in row:
            advice = _advice(row["missing_bytes"])
            text = f"{experiment.name} does not compile for {name}: {row['unavailable']}.{advice}"
            print(text, file=sys.stderr)
            status = exit_codes.FAILED
        else:
            print(describe(row), flush=True)
    if status == exit_codes.OK:
        print("\n" + assumptions(), end="")
    return status


def _advice(missing: int | None) -> str:
    if missing is None:
        return ""
    return (
        f" {missing / GIB:.2f} GiB per chip are missing: use a smaller --train.images-per-device, "
        "--train.remat, or a larger --train.accumulate, which processes the images in parts."
    )


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["topology"], row["experiment"], row["effort"], json.dumps(row["changes"], sort_keys=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with dotted names."""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a result file, none if it does not exist; InputError if it is not a result file."""
    try:
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        return [row for row in rows if _identity(row)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file of {PROGRAM}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Compiles; returns the exit status."""
    try:
        return run(*parse(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_codes.exit_status(error)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are measured
    sys.exit(main())
