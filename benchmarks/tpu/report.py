"""python -m benchmarks.tpu.report: renders results/tpu_train_step.json as the table results/TPU.md. Nothing in it is written by hand."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tpu._estimate import assumptions, chip_of, estimate_step, reduction, used_bytes
from benchmarks.tpu._programs import CHIPS, GIB
from benchmarks.tpu.compile_train_step import PROGRAM, Options, read_rows
from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"
FILE, PAGE = "tpu_train_step.json", "TPU.md"

INTRODUCTION = f"""\
# The train step on TPUs, compiled ahead of time

Every row is one compilation of the whole train step (images, targets, all losses, optimiser, all-reduce) for all chips of a slice of TPUs, on a machine without
one, made by `{PROGRAM} --topology TOPOLOGY --experiment EXPERIMENT` and the options of its row. **Nothing was run on a TPU**: memory, FLOPs, all-reduces and cycles are the
compiler's account for one chip, times are estimates from them. The compiler's effort is {Options.effort:g} unless a row says otherwise. A
run's is 0, which takes longer to compile and makes faster programs.
"""
COLUMNS = (
    "slice", "chips", "experiment", "images a chip", "HBM used, GiB", "free, GiB", "TFLOP a step", "all-reduce of gradients", "step at least, ms", "by cycles, ms",
    "all-reduce, ms", "scaling", "compiling, CPU s",
)  # fmt: skip
NOT_SHOWN = ("train.images_per_device",)  # has a column


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    rows = sorted(rows, key=_order)
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    versions = sorted({f"jax {row['jax']} and libtpu {row['libtpu']}" for row in rows})
    refused = [f"- {row['experiment']}{_options(row)} on {row['topology']}: {row['unavailable']}." for row in rows if "unavailable" in row]
    sections = [INTRODUCTION, "\n".join(lines), *(["Refused by the compiler:", "\n".join(refused)] if refused else [])]
    sections += [*_efforts(rows), "## What the figures mean", assumptions()]
    made = f"Made by `python -m benchmarks.tpu.report` from `{FILE}`; compiled with {' and '.join(versions)}."
    return "\n\n".join(part.strip() for part in [*sections, made]) + "\n"


def _cells(row):
    size = " x ".join(map(str, row["image_size"]))
    about = [row["topology"], f"{row['chips']:,}", f"{row['experiment']}{_options(row)}", f"{row['images_per_chip']} of {size}, {row['dtype']}"]
    if "unavailable" in row:
        missing = "-" if row["missing_bytes"] is None else f"{-row['missing_bytes'] / GIB:.2f}"
        return [*about, "does not fit", missing, f"{row['product_flops'] / 1e12:.2f}", *"-" * (len(COLUMNS) - len(about) - 3)]
    used, travels, expected = used_bytes(row), reduction(row), estimate_step(row)
    return [
        *about, f"{used / GIB:.2f}", f"{(chip_of(row).available - used) / GIB:.2f}", f"{row['product_flops'] / 1e12:.2f}",
        f"{travels.gradient_bytes / 1e6:.1f} MB in {travels.gradient_operations}", f"{expected.least_ms:.1f}",
        "-" if expected.cycles_ms is None else f"{expected.cycles_ms:.0f}", " to ".join(f"{time:.1f}" for time in expected.reduce_ms),
        f"{' to '.join(f'{100 * share:.0f}' for share in expected.scaling)} %", f"{row['compile_cpu_seconds']:,}",
    ]  # fmt: skip


def _efforts(rows):
    """What the compiler's effort changes, for each program that was compiled both ways."""
    whole = {_program(row): row for row in rows if row["effort"] == 0 and "unavailable" not in row}
    pairs = [(row, whole[_program(row)]) for row in rows if row["effort"] < 0 and _program(row) in whole and "unavailable" not in row]
    lines = [
        f"- {quick['experiment']}, {quick['images_per_chip']} images a chip, on {quick['topology']}: HBM {used_bytes(quick) / GIB:.2f} GiB with {quick['effort']:g}, "
        f"{used_bytes(whole) / GIB:.2f} with 0; compiling {quick['compile_cpu_seconds']:,} and {whole['compile_cpu_seconds']:,} CPU seconds."
        for quick, whole in pairs
    ]
    return ["What the compiler's effort changes:", "\n".join(lines)] if lines else []


def _program(row):
    return row["topology"], row["experiment"], json.dumps(row["changes"], sort_keys=True)


def _options(row):
    """The fields that were given, as on the command line, and the compiler's effort."""
    words = []
    for field, value in row["changes"].items():
        if field not in NOT_SHOWN:
            words += [f"--{field.replace('_', '-')}", *([] if value is True else [str(value)])]
    if row["effort"] != Options.effort:
        words += ["--effort", f"{row['effort']:g}"]
    return f" `{' '.join(words)}`" if words else ""


def _order(row):
    generation = list(CHIPS).index(row["topology"].partition(":")[0])
    return row["experiment"] != "mask_rcnn_r50_fpn", row["experiment"], row["images_per_chip"], _options(row), generation, row["chips"]


def main(arguments: list[str] | None = None) -> int:
    """Renders the results of this folder, or of that given."""
    folder = Path(*(sys.argv[1:] if arguments is None else arguments)[:1] or [RESULTS])
    try:
        rows = read_rows(folder / FILE)
        if not rows:
            raise InputError(f"There are no rows in {folder / FILE}: {PROGRAM} --out {folder / FILE} --add makes them")
    except InputError as error:
        print(error, file=sys.stderr)
        return exit_status(error)
    write_text(folder / PAGE, page(rows))
    print(f"Rendered {folder / PAGE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
