"""Renders the RoI operations' result files as tables and plots: python -m benchmarks.roi.report [FOLDER].

``summary(read_results())`` returns a short table for use on other pages.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.roi._rows import (
    BACKWARD,
    FORWARD,
    PLATFORMS,
    TORCHVISION,
    Row,
    by_direction,
    group_rows,
    is_measured,
    machine_name,
    number,
    pair,
    select,
    title,
)
from benchmarks.roi._workloads import WORKLOADS
from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"
TABLES = "ROI_OPS.md"
PATTERN = "roi_ops_*.json"
OPERATION = ("operation", "reduction", "samples")
DIRECTIONS = (FORWARD, BACKWARD)
COMPILED = """\
Nothing was run: memory and bytes are the compiler's, which counts the body of a loop once. FLOPs are those of
matrix products, every iteration of a loop counted. "At least" is the time that a chip needs at its peak
rates for these, or to read every argument and write every result once. A TPU gathers and scatters rows one
after another, which no figure here shows; this is why "matmul", without any, is the default for averages
there.
"""
EXPLANATION = """\
Made by `python -m benchmarks.roi.report` from the files `roi_ops_*.json` beside it. The default
implementation of each operation is **bold**; `mrcnn_jax.ops.roi_implementations` describes them.

- Times are medians of warm programs, in milliseconds; the implementations of an operation took turns. "With
  gradient" is one program, or with torchvision one forward and one backward pass, that computes the pooled
  features and the gradient of the feature maps. Other columns show both: forward / with gradient.
- "torchvision" is the speed relative to torchvision's C++ or CUDA operation. torchvision has no maximum of
  RoIAlign's samples and no RoIWarp. On a CPU its operations run in one thread, those of this library in one
  for each core.
- "Temporary" is the compiler's figure for memory besides arguments and results; its bound is twice the pooled
  features and all feature maps.
- "Share of a copy": bytes that must be read and written (every argument and every result once), per second,
  as a share of the bandwidth of a copy of 128 MiB.
- "one-hot einsum" is RoIAlign as products of dense matrices, level by level, as in much other JAX code.
- "sorted" was "gather" with a gradient sorted by cells before the scatter; it was slower and has been
  removed.
- Not everything is measured in every implementation: `python -m benchmarks.roi.measure --all --minutes 120`.
"""


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Reads the result files of a folder by their stems; InputError if one is not a result file."""
    results = {}
    for path in sorted(folder.glob(PATTERN)):
        try:
            content = json.loads(path.read_text())
            content["machine"]["platform"], content["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not a result file of the RoI operations: {error}") from error
        results[path.stem] = content
    return results


def tables(results: Mapping[str, Mapping[str, Any]], plots: Iterable[str] = ()) -> str:
    """Renders the page; ``plots`` are names of files that ``_plots.draw`` made."""
    parts = ["# RoI operations, measured", EXPLANATION, summary(results), _workloads()]
    for name, content in results.items():
        machine, measured = content["machine"], is_measured(content["rows"])
        parts.append(f"## {machine_name(content)}" + ("" if measured else ": compiled, not run"))
        speed = content.get("copy_gigabytes_per_second")
        facts = [f"`{content['command']}`"] if content.get("command") else []
        facts += [
            f"{key} {machine[key]}" for key in ("jax", "libtpu", "torch", "torchvision") if machine.get(key)
        ]
        facts += [f"a copy moves {speed:.3g} GB/s"] if speed else []
        parts += ["; ".join(facts), content.get("note", "")]
        captions = {"speed": "Speed relative to torchvision", "times": "Time of each implementation"}
        for suffix, caption in captions.items():
            parts += [f"![{caption}]({name}_{suffix}.png)"] if f"{name}_{suffix}.png" in plots else []
        if not measured:
            parts.append(COMPILED)
        elif not machine.get("torchvision"):
            parts.append("torchvision was not measured.")
        for (workload, batch, dtype, topology), rows in group_rows(
            content["rows"], "workload", "batch", "dtype", "topology"
        ).items():
            parts.append(f"### {workload}, {batch} x {dtype}" + (f" on {topology}" if topology else ""))
            parts += [
                _measured_table(rows) if is_measured(rows) else _compiled_table(rows),
                *_unavailable(rows),
            ]
        if content.get("not_measured"):
            groups = group_rows(content["not_measured"], "workload", "batch", "dtype", "reason")
            lines = (
                f"- {key[0]}, {key[1]} x {key[2]}: {_cells(rows)} ({key[3]})" for key, rows in groups.items()
            )
            parts += ["### Not measured", "\n".join(lines)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders a table for each platform measured: the default implementations in float32 with one image.

    Cells are milliseconds forward / with gradient, and the speed relative to torchvision.
    """
    parts, platforms = [], dict(PLATFORMS)
    for content in results.values():
        rows = [row for row in content["rows"] if "median_ms" in row]
        if rows:
            platforms.pop(content["machine"]["platform"], None)
        rows = select(rows, batch=1, dtype="float32")
        if not rows:
            continue
        workloads = [workload for (workload,) in group_rows(rows, "workload")]
        lines = []
        for key, of_operation in group_rows(rows, *OPERATION).items():
            cells = []
            for workload in workloads:
                here = select(of_operation, workload=workload)
                default = by_direction(select(here, is_default=True))
                speeds = _speeds(default, by_direction(select(here, implementation=TORCHVISION)))
                times = pair(default, lambda row: number(row["median_ms"]))
                cells.append(times + (f" ({speeds})" if speeds != "-" else ""))
            lines.append([title(key), *cells])
        parts.append(_table([machine_name(content), *workloads], lines))
    missing = (
        f"No {name} results yet: run `python -m benchmarks.roi.measure` on one."
        for name in platforms.values()
    )
    return "\n\n".join([*parts, *missing])


def _workloads():
    lines = []
    for load in WORKLOADS.values():
        maps = ", ".join(f"{height} x {width}" for height, width in load.maps)
        features = f"{maps}; {load.channels} channels"
        lines.append([f"{load.name}: {load.use}", features, f"{load.rois:,}", f"{load.bins} x {load.bins}"])
    return _table(["workload", "feature maps", "RoIs of an image", "bins"], lines)


def _measured_table(rows):
    bound = number(rows[0]["bound_bytes"] / 1e6)
    lines = []
    for key, of_operation in group_rows(rows, *OPERATION).items():
        torchvision = by_direction(select(of_operation, implementation=TORCHVISION))
        for (implementation,), own in group_rows(of_operation, "implementation").items():
            cells = by_direction(own)
            if cells:
                lines.append([
                    title(key), _name(own),
                    *(number(cells[way]["median_ms"]) if way in cells else "-" for way in DIRECTIONS),
                    "1" if implementation == TORCHVISION else _speeds(cells, torchvision),
                    pair(cells, lambda row: number(row.get("compile_seconds"))),
                    _megabytes(cells, "temp_bytes"),
                    pair(cells, lambda row: f"{100 * row['share_of_copy']:.2g}%"),
                ])  # fmt: skip
    return _table(
        ["operation", "implementation", "forward, ms", "with gradient, ms", "torchvision", "compiling, s",
         f"temporary, MB (bound {bound})", "share of a copy"], lines,
    )  # fmt: skip


def _compiled_table(rows):
    """The compiler's figures for programs that were not run."""
    bound = next(
        (f" (bound {number(row['bound_bytes'] / 1e6)})" for row in rows if row.get("bound_bytes")), ""
    )
    lines = []
    for key, of_operation in group_rows(rows, *OPERATION).items():
        for own in group_rows(of_operation, "implementation").values():
            cells = {row["direction"]: row for row in own if "unavailable" not in row}
            if cells:
                lines.append([
                    title(key), _name(own), pair(cells, lambda row: number(row.get("compile_seconds"))),
                    _megabytes(cells, "temp_bytes"), _megabytes(cells, "bytes_accessed"),
                    pair(cells, lambda row: number(row.get("product_flops"), scale=1e-9)),
                    pair(cells, lambda row: number(row.get("least_ms"))),
                ])  # fmt: skip
    return _table(
        ["operation", "implementation", "compiling, s", f"temporary, MB{bound}", "bytes accessed, MB",
         "GFLOP", "at least, ms"], lines,
    )  # fmt: skip


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = "|---" * len(header) + "|"
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def _unavailable(rows):
    """A sentence for each reason why an implementation could not be measured."""
    failed = group_rows((row for row in rows if row.get("unavailable")), "implementation", "unavailable")
    return [f"Not available: {name}, {_cells(own)} ({reason})." for (name, reason), own in failed.items()]


def _cells(rows):
    """Operations and directions in words."""
    operations = group_rows(rows, *OPERATION).items()
    return "; ".join(
        f"{title(key)}: {' and '.join(row['direction'] for row in own)}" for key, own in operations
    )


def _name(rows):
    name = rows[0]["implementation"]
    return f"**{name}**" if any(row.get("is_default") for row in rows) else name


def _speeds(cells: Mapping[str, Row], torchvision: Mapping[str, Row]) -> str:
    def text(row: Row) -> str | None:
        other = torchvision.get(row["direction"])
        return f"{number(other['median_ms'] / row['median_ms'], digits=2)}x" if other else None

    return pair(cells, text)


def _megabytes(cells, field):
    return pair(cells, lambda row: number(row.get(field), scale=1e-6))


def render(folder: Path = RESULTS) -> list[Path]:
    """Draws the plots and writes the page beside the result files; returns the page."""
    from benchmarks.roi._plots import draw

    results = read_results(folder)
    plots = [plot for name, content in results.items() for plot in draw(name, content, folder)]
    write_text(folder / TABLES, tables(results, plots))
    return [folder / TABLES]


def main(arguments: Sequence[str]) -> int:
    """Renders the results of a folder; returns the exit status."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else RESULTS
    try:
        if not any(folder.glob(PATTERN)):
            raise InputError(f"{folder} contains no {PATTERN}: run `python -m benchmarks.roi.measure` first.")
        print(f"Wrote {render(folder)[0]}.")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
