"""Rows of tpu_train_step.json, one for each compilation, and their cells in a table."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._program import option_words
from benchmarks.tpu._estimate import estimate_step, free_bytes, gradient_reductions, used_bytes
from benchmarks.tpu._programs import GIB
from mrcnn_jax.errors import InputError

COLUMNS = (
    "slice", "chips", "preset", "images per chip", "HBM used, GiB", "HBM free, GiB", "TFLOP per step",
    "all-reduce of gradients", "step at least, ms", "step by cycles, ms", "all-reduce, ms", "scaling",
    "compilation, CPU s",
)  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a result file, none if it does not exist; InputError if it is not a result file."""
    try:
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        return [row for row in rows if program_of(row)]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no result file of compiled training steps: {error}") from error


def read_ablation(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of tpu_space_to_batch.json, none if it does not exist."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def program_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the slice, the preset and its changes, which determine a program apart from the effort."""
    return row["topology"], row["experiment"], json.dumps(row["changes"], sort_keys=True)


def options_of(row: Mapping[str, Any]) -> str:
    """Returns the changed fields, and the compiler's effort, as on the command line."""
    changes = {name: value for name, value in row["changes"].items() if name != "train.images_per_device"}
    changes |= {"effort": f"{row['effort']:g}"} if row["effort"] else {}
    words = [word for change in changes.items() for word in option_words(*change)]
    return f" `{' '.join(words)}`" if words else ""


def cells(row: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a row, one for each column."""
    size, flops = " x ".join(map(str, row["image_size"])), f"{row['product_flops'] / 1e12:.2f}"
    start = [row["topology"], f"{row['chips']:,}", f"{row['experiment']}{options_of(row)}",
             f"{row['images_per_chip']} of {size}, {row['dtype']}"]  # fmt: skip
    if "unavailable" in row:
        return [*start, "refused", "-", flops, *"-" * (len(COLUMNS) - len(start) - 3)]
    gradients, expected = gradient_reductions(row), estimate_step(row)
    return [
        *start, f"{used_bytes(row) / GIB:.2f}", f"{free_bytes(row) / GIB:.2f}", flops,
        f"{sum(gradients) / 1e6:.1f} MB in {len(gradients)}", f"{expected.least_ms:.1f}",
        "-" if expected.cycles_ms is None else f"{expected.cycles_ms:.0f}",
        " to ".join(f"{time:.1f}" for time in expected.reduce_ms),
        f"{' to '.join(f'{100 * share:.0f}' for share in expected.scaling)} %",
        f"{row['compile_cpu_seconds']:,}",
    ]  # fmt: skip
