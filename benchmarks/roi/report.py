"""Renders the RoI operations' result files as a page with plots: python -m benchmarks.roi.report [FOLDER]."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks._markdown import PLATFORMS, fill, machine_name, number, read_results, table, write_page
from benchmarks._program import RESULTS, render_files
from benchmarks.roi import _rows
from benchmarks.roi._plots import draw
from benchmarks.roi._workloads import WORKLOADS

PROGRAM = "python -m benchmarks.roi.report"
PAGE = "ROI_OPS.md"


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Reads the result files of a folder by their stems; InputError if there are none."""
    return read_results(folder, "roi_ops_*.json", "python -m benchmarks.roi.measure")


def page(results: Mapping[str, Mapping[str, Any]], plots: Iterable[str] = ()) -> str:
    """Renders the page; ``plots`` are names of those that ``_plots.draw`` made."""
    parts = [fill(PAGE), *_summary(results), _workloads()]
    for name, content in results.items():
        parts += _machine_section(name, content, plots)
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _summary(results):
    """Yields a table for each platform measured: the default implementations in float32 with one image."""
    platforms = dict(PLATFORMS)
    for content in results.values():
        if not (rows := _rows.select(_rows.timed(content), batch=1, dtype="float32")):
            continue
        platforms.pop(content["machine"]["platform"], None)
        workloads = [workload for (workload,) in _rows.group_by(rows, "workload")]
        lines = []
        for key, of_operation in _rows.group_by(rows, *_rows.OPERATION).items():
            lines.append([_rows.title(key)])
            for workload in workloads:
                default = _rows.by_direction(of_operation, workload=workload, is_default=True)
                others = _rows.by_direction(of_operation, workload=workload, implementation=_rows.TORCHVISION)
                times, speeds = _figure("median_ms")(default, others), _speeds(default, others)
                lines[-1].append(times + (f" ({speeds})" if speeds != "-" else ""))
        yield table([machine_name(content["machine"]), *workloads], lines)
    for name in platforms.values():
        yield f"No {name} results yet: run `python -m benchmarks.roi.measure` on one."


def _workloads():
    lines = []
    for load in WORKLOADS.values():
        maps = ", ".join(f"{height} x {width}" for height, width in load.maps)
        features = f"{maps}; {load.channels} channels"
        lines.append([f"{load.name}: {load.use}", features, f"{load.rois:,}", f"{load.bins} x {load.bins}"])
    return table(["workload", "feature maps", "RoIs of an image", "bins"], lines)


def _machine_section(name, content, plots):
    """Yields the parts of the page for a result file."""
    machine, measured = content["machine"], bool(_rows.timed(content))
    yield f"## {machine_name(machine)}" + ("" if measured else ": compiled, not run")
    facts = [f"`{content['command']}`"] if content.get("command") else []
    versions = ("jax", "libtpu", "torch", "torchvision")
    facts += [f"{key} {machine[key]}" for key in versions if machine.get(key)]
    speed = content.get("copy_gigabytes_per_second")
    yield "; ".join([*facts, f"a copy moves {speed:.3g} GB/s"] if speed else facts)
    yield content.get("note", "")
    captions = {"speed": "Speed relative to torchvision", "times": "Time of each implementation"}
    for suffix, caption in captions.items():
        if (plot := f"{name}_{suffix}") in plots:
            yield f"![{caption}]({plot}.png)"
    if not measured:
        yield fill("ROI_OPS_compiled.md")
    elif not machine.get("torchvision"):
        yield "torchvision was not measured."
    groups = _rows.group_by(content["rows"], "workload", "batch", "dtype", "topology")
    for (workload, batch, dtype, topology), rows in groups.items():
        yield f"### {workload}, {batch} x {dtype}" + (f" on {topology}" if topology else "")
        yield _figures_table(rows, MEASURED if measured else COMPILED_ONLY)
        failed = [row for row in rows if "unavailable" in row]
        failed = _rows.group_by(failed, "implementation", "unavailable")
        for (implementation, reason), own in failed.items():
            yield f"Not available: {implementation}, {_cells(own)} ({reason})."
    if content.get("not_measured"):
        yield "### Not measured"
        groups = _rows.group_by(content["not_measured"], "workload", "batch", "dtype", "reason").items()
        lines = (f"- {key[0]}, {key[1]} x {key[2]}: {_cells(rows)} ({key[3]})" for key, rows in groups)
        yield "\n".join(lines)


def _cells(rows):
    """Lists operations and directions in words."""
    operations = _rows.group_by(rows, *_rows.OPERATION).items()
    ways = ((_rows.title(key), " and ".join(row["direction"] for row in own)) for key, own in operations)
    return "; ".join(map(": ".join, ways))


def _figures_table(rows, columns):
    """Renders a line for each implementation of each operation that has figures."""
    lines, bound = [], next((row["bound_bytes"] for row in rows if row.get("bound_bytes")), None)
    for key, of_operation in _rows.group_by(rows, *_rows.OPERATION).items():
        torchvision = _rows.by_direction(of_operation, implementation=_rows.TORCHVISION)
        for (name,), own in _rows.group_by(of_operation, "implementation").items():
            if cells := _rows.by_direction(own):
                name = f"**{name}**" if any(row.get("is_default") for row in own) else name
                figures = (column(cells, torchvision) for column in columns.values())
                lines.append([_rows.title(key), name, *figures])
    heads = [head.format(bound=number(bound, scale=1e-6)) for head in columns]
    return table(["operation", "implementation", *heads], lines)


def _speeds(cells, torchvision):
    """Renders the speeds relative to torchvision's."""

    def text(row):
        other = torchvision.get(row["direction"])
        return f"{number(other['median_ms'] / row['median_ms'], digits=2)}x" if other else None

    return "1" if cells == torchvision and cells else _rows.pair(cells, text)


def _figure(field, scale=1.0, digits=3, unit="", **only):
    """Returns a column with a field of both directions, or of one."""

    def text(row):
        return (value := number(row.get(field), digits, scale)) and value + unit

    return lambda cells, _: _rows.pair(_rows.by_direction(cells.values(), **only), text)


COMPILING = {
    "compiling, s": _figure("compile_seconds"), "temporary, MB (bound {bound})": _figure("temp_bytes", 1e-6)
}  # fmt: skip
MEASURED = {
    "forward, ms": _figure("median_ms", direction=_rows.FORWARD),
    "with gradient, ms": _figure("median_ms", direction=_rows.BACKWARD),
    "torchvision": _speeds, **COMPILING, "share of a copy": _figure("share_of_copy", 100, 2, "%"),
}  # fmt: skip
COMPILED_ONLY = {
    **COMPILING, "bytes accessed, MB": _figure("bytes_accessed", 1e-6),
    "GFLOP": _figure("product_flops", 1e-9), "at least, ms": _figure("least_ms"),
}  # fmt: skip


def render(folder: Path = RESULTS) -> list[Path]:
    """Draws the plots and writes the page beside the result files; returns them."""
    results, figures = read(folder), {}
    for name, content in results.items():
        figures |= draw(name, content)
    return write_page(folder / PAGE, page(results, figures), **figures)


def main(arguments: list[str] | None = None) -> int:
    """Renders the results of a folder; returns the exit status."""
    return render_files(PROGRAM, render, arguments)


if __name__ == "__main__":
    sys.exit(main())
