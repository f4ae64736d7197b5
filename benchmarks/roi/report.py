"""python -m benchmarks.roi.report [FOLDER]: renders the result files of the RoI operations as tables and pictures, and as README.md's short table.

From roi_ops_*.json alone: nothing in these tables is written by hand.
"""

import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.roi._workloads import WORKLOADS
from experiments.report import README
from mrcnn_jax.atomic_io import replacing, write_text
from mrcnn_jax.errors import InputError

RESULTS = Path(__file__).parents[1] / "results"
TABLES = "ROI_OPS.md"
PATTERN = "roi_ops_*.json"
BEGIN, END = "<!-- roi operations: made by python -m benchmarks.roi.report -->", "<!-- end of roi operations -->"
FORWARD, BACKWARD = "forward", "forward+backward"
TORCHVISION, ONE_HOT = "torchvision", "one-hot einsum"
PLATFORMS = {"cpu": "CPU", "gpu": "GPU", "tpu": "TPU"}
MARKS = {TORCHVISION: {"color": "0.25", "marker": "D"}, ONE_HOT: {"color": "0.65", "marker": "s"}}
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")  # Okabe and Ito's: distinct also for those who do not tell red from green

COMPILED = """\
Nothing was run: memory and bytes are the compiler's account, which counts what a loop does once, however often it turns. FLOPs are those of matrix
products, every turn of a loop counted. "At least" is what a chip needs at its peak rates for these, or to read every argument and write every result once.
Rows that are gathered or scattered a TPU takes one after another, which no figure here shows: it is why "matmul", that has none, is the default form of averages there.
"""
EXPLANATION = f"""\
Made by `python -m benchmarks.roi.report` from the files `roi_ops_*.json` beside it. The default form of each operation is **bold**.

- Times are medians of warm programs, in milliseconds; the forms of an operation took turns. "With gradient" is one program, or with torchvision
  one pass forward and one backward, that gives the pooled features and the gradient of the feature maps. In the other columns the two are told
  apart by a stroke: forward / with gradient.
- "torchvision" is how many times as fast as torchvision's C++ or CUDA operation a form is. torchvision has no maximum of RoIAlign's samples and no
  RoIWarp. On a CPU its operations run in one thread, those of this library in as many as there are cores.
- "Temporary" is the compiler's figure for memory beside arguments and results, and its bound twice the pooled features and all feature maps.
- "Share of a copy": what must be read and written at least (every argument and every result once), per second, as a share of the bandwidth of a
  copy of 128 MiB.
- "{ONE_HOT}" is RoIAlign as products of dense matrices, level by level, the form that much other JAX code has.
- Not everything is measured in every form; `python -m benchmarks.roi.measure --all --minutes 120` would do that.
"""
Row = Mapping[str, Any]


def read_results(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The content of each result file, by its name without its ending; InputError if one is not such a file."""
    results = {}
    for path in sorted(folder.glob(PATTERN)):
        try:
            content = json.loads(path.read_text())
            content["machine"]["platform"], content["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no result file of the RoI operations: {error}") from error
        results[path.stem] = content
    return results


# ---------------------------------------------------------------- tables


def tables(results: Mapping[str, Mapping[str, Any]], pictures: Iterable[str] = ()) -> str:
    """The whole page; ``pictures`` are the names of files that ``draw`` made."""
    parts = ["# RoI operations, measured", EXPLANATION, _workloads()]
    for name, content in results.items():
        measured = _measured(content["rows"])
        parts.append(f"## {_machine(content)}" + ("" if measured else ": compiled, not run"))
        speed = content.get("copy_gigabytes_per_second")
        facts = [f"`{content['command']}`"] if content.get("command") else []
        facts += [f"{key} {content['machine'][key]}" for key in ("jax", "libtpu", "torch", "torchvision") if content["machine"].get(key)]
        facts += [f"a copy moves {speed:.3g} GB/s"] if speed else []
        parts += ["; ".join(facts), content.get("note", "")]
        parts += [f"![{_caption(picture)}]({picture})" for picture in pictures if picture.startswith(f"{name}_") and _owner(picture, results) == name]
        if measured and not content["machine"].get("torchvision"):
            parts.append("torchvision was not there to be measured.")
        if not measured:
            parts.append(COMPILED)
        for (workload, batch, dtype, topology), rows in _by(content["rows"], "workload", "batch", "dtype", "topology").items():
            place = f" on {topology}" if topology else ""
            parts += [f"### {workload}, {batch} x {dtype}{place}", _measured_table(rows) if _measured(rows) else _compiled_table(rows)]
            parts += _unavailable(rows)
        if content.get("not_measured"):
            parts += ["### Not measured", _not_measured(content["not_measured"])]
    return "\n\n".join(part.strip() for part in [*parts, *missing(results)] if part) + "\n"


def missing(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each platform on which nothing was measured."""
    measured = {content["machine"]["platform"] for content in results.values() if _measured(content["rows"])}
    return [f"No {name} results yet: run `python -m benchmarks.roi.measure` on one." for platform, name in PLATFORMS.items() if platform not in measured]


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A short table for each platform that was measured: the default forms in float32 with one image."""
    parts = []
    for content in results.values():
        rows = [row for row in content["rows"] if "median_ms" in row and (row["batch"], row["dtype"]) == (1, "float32")]
        if not rows:
            continue
        workloads = [workload for (workload,) in _by(rows, "workload")]
        lines = [f"| {_machine(content)} | {' | '.join(workloads)} |", "|---" * (1 + len(workloads)) + "|"]
        for key, of_operation in _by(rows, "operation", "reduction", "samples").items():
            cells = []
            for workload in workloads:
                here = [row for row in of_operation if row["workload"] == workload]
                default = _directions(row for row in here if row["is_default"])
                speeds = _speeds(default, _directions(row for row in here if row["form"] == TORCHVISION))
                cells.append(_pair(default, lambda row: _number(row["median_ms"])) + (f" ({speeds})" if speeds != "-" else ""))
            lines.append(f"| {_title(key)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *missing(results)])


def _workloads() -> str:
    lines = ["| workload | feature maps | RoIs of an image | bins |", "|---|---|---|---|"]
    for workload in WORKLOADS.values():
        maps = ", ".join(f"{height} x {width}" for height, width in workload.maps)
        lines.append(
            f"| {workload.name}: {workload.use} | {maps}; {workload.channels} channels | {workload.rois:,} | {workload.bins} x {workload.bins} |"
        )
    return "\n".join(lines)


def _measured_table(rows: Sequence[Row]) -> str:
    bound = _number(rows[0]["bound_bytes"] / 1e6)
    lines = [
        f"| operation | form | forward, ms | with gradient, ms | torchvision | compiling, s | temporary, MB (bound {bound}) | share of a copy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, of_operation in _by(rows, "operation", "reduction", "samples").items():
        theirs = _directions(row for row in of_operation if row["form"] == TORCHVISION)
        for (form,), of_form in _by(of_operation, "form").items():
            cells = _directions(of_form)
            if not cells:
                continue
            columns = [
                *(_number(cells[direction]["median_ms"]) if direction in cells else "-" for direction in (FORWARD, BACKWARD)),
                "1" if form == TORCHVISION else _speeds(cells, theirs),
                _pair(cells, lambda row: _number(row.get("compile_seconds"))),
                _pair(cells, lambda row: _megabytes(row.get("temp_bytes"))),
                _pair(cells, lambda row: f"{100 * row['share_of_copy']:.2g}%"),
            ]
            lines.append(f"| {_title(key)} | {_form(of_form)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _compiled_table(rows: Sequence[Row]) -> str:
    """What the compiler says of programs that nobody ran."""
    bound = next((f" (bound {_number(row['bound_bytes'] / 1e6)})" for row in rows if row.get("bound_bytes")), "")
    lines = [
        f"| operation | form | compiling, s | temporary, MB{bound} | bytes accessed, MB | GFLOP | at least, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, of_operation in _by(rows, "operation", "reduction", "samples").items():
        for of_form in _by(of_operation, "form").values():
            cells = {row["direction"]: row for row in of_form if "unavailable" not in row}
            columns = [
                _pair(cells, lambda row: _number(row.get("compile_seconds"))),
                _pair(cells, lambda row: _megabytes(row.get("temp_bytes"))),
                _pair(cells, lambda row: _megabytes(row.get("bytes_accessed"))),
                _pair(cells, lambda row: _number(row["product_flops"] / 1e9) if row.get("product_flops") is not None else None),
                _pair(cells, lambda row: _number(row.get("least_ms"))),
            ]
            if cells:
                lines.append(f"| {_title(key)} | {_form(of_form)} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _unavailable(rows: Sequence[Row]) -> list[str]:
    """A sentence for each reason why a form was not there."""
    failed = [row for row in rows if row.get("unavailable")]
    return [f"Not available: {form}, {_cells(of_form)} ({reason})." for (form, reason), of_form in _by(failed, "form", "unavailable").items()]


def _not_measured(groups: Sequence[Row]) -> str:
    lines = []
    for (workload, batch, dtype, reason), rows in _by(groups, "workload", "batch", "dtype", "reason").items():
        lines.append(f"- {workload}, {batch} x {dtype}: {_cells(rows)} ({reason})")
    return "\n".join(lines)


def _cells(rows: Sequence[Row]) -> str:
    """Operations and directions in words."""
    operations = _by(rows, "operation", "reduction", "samples")
    return "; ".join(f"{_title(key)}: {' and '.join(row['direction'] for row in of_operation)}" for key, of_operation in operations.items())


def _machine(content: Mapping[str, Any]) -> str:
    machine = content["machine"]
    name = PLATFORMS.get(machine["platform"], machine["platform"])
    kind = machine.get("device_kind", "")
    if machine["platform"] == "cpu":
        return f"{name} ({machine.get('processor', kind)}, {machine.get('cores')} cores)"
    return f"{name} ({kind})" if kind else name


def _title(key: tuple[str, str, int | None]) -> str:
    """An operation in words."""
    operation, reduction, samples = key
    if operation == "pool":
        return "RoIPool"
    number = f" of {samples} x {samples}" if samples else ", adaptive"
    return f"{'RoIWarp' if operation == 'warp' else 'RoIAlign'}, {'maximum' if reduction == 'max' else reduction}{number}"


def _key(row: Row) -> tuple[str, str, int | None]:
    return row["operation"], row["reduction"], row["samples"]


def _form(rows: Sequence[Row]) -> str:
    form = rows[0]["form"]
    return f"**{form}**" if any(row.get("is_default") for row in rows) else form


def _measured(rows: Iterable[Row]) -> bool:
    return any("median_ms" in row for row in rows)


def _by(rows: Iterable[Row], *fields: str) -> dict[tuple, list[Row]]:
    """The rows that agree in these fields, in their first one's order."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row.get(field) for field in fields), []).append(row)
    return groups


def _directions(rows: Iterable[Row]) -> dict[str, Row]:
    """What was measured of one form, by direction."""
    return {row["direction"]: row for row in rows if "median_ms" in row}


def _pair(cells: Mapping[str, Row], text: Callable[[Row], str | None]) -> str:
    """What is to be said of the two directions, of one only where it is all there is."""
    values = [text(cells[direction]) for direction in (FORWARD, BACKWARD) if direction in cells]
    return " / ".join(value or "-" for value in values) if any(values) else "-"


def _speeds(cells: Mapping[str, Row], theirs: Mapping[str, Row]) -> str:
    """How many times as fast as torchvision."""

    def text(row: Row) -> str | None:
        other = theirs.get(row["direction"])
        return f"{_number(other['median_ms'] / row['median_ms'], digits=2)}x" if other else None

    return _pair(cells, text)


def _number(value: float | None, digits: int = 3) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _megabytes(value: float | None) -> str | None:
    return None if value is None else _number(value / 1e6)


# ---------------------------------------------------------------- pictures


def draw(name: str, content: Mapping[str, Any], folder: Path) -> list[str]:
    """The pictures of one result file, as PNG; returns their names."""
    rows = [row for row in content["rows"] if "median_ms" in row]
    if not rows:
        return []
    usual = [row for row in rows if (row["batch"], row["dtype"]) == (1, "float32")] or next(iter(_by(rows, "batch", "dtype").values()))
    note = f"{_machine(content)}, {usual[0]['batch']} x {usual[0]['dtype']}"
    pictures = {f"{name}_speed.png": _draw_speed(usual, note), f"{name}_times.png": _draw_times(usual, note)}
    for picture, figure in pictures.items():
        if figure is not None:
            with replacing(folder / picture) as unfinished:
                figure.savefig(unfinished, dpi=110)
    return [picture for picture, figure in pictures.items() if figure is not None]


def _draw_speed(rows: Sequence[Row], note: str) -> Figure | None:
    """Bars: how many times as fast as torchvision the default forms are."""
    workloads = [workload for (workload,) in _by(rows, "workload")]
    speeds = {}  # by direction, operation and workload
    for (workload, *key), of_operation in _by(rows, "workload", "operation", "reduction", "samples").items():
        theirs = _directions(row for row in of_operation if row["form"] == TORCHVISION)
        for direction, row in _directions(row for row in of_operation if row.get("is_default")).items():
            if direction in theirs:
                speeds.setdefault(direction, {}).setdefault(tuple(key), {})[workload] = theirs[direction]["median_ms"] / row["median_ms"]
    if not speeds:
        return None
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    operations = list(dict.fromkeys(key for of_direction in speeds.values() for key in of_direction))
    width = 0.8 / len(operations)
    axes = figure.subplots(1, len(speeds), sharey=True, squeeze=False)[0]
    for axis, (direction, of_direction) in zip(axes, speeds.items(), strict=True):
        shown = [workload for workload in workloads if any(workload in cells for cells in of_direction.values())]
        for number, key in enumerate(operations):
            cells = of_direction.get(key, {})
            places = [shown.index(workload) + (number - (len(operations) - 1) / 2) * width for workload in cells]
            bars = axis.bar(places, list(cells.values()), 0.92 * width, color=COLORS[number % len(COLORS)], label=_title(key))
            axis.bar_label(bars, [f"{_number(speed, 2)}x" for speed in cells.values()], fontsize="small", padding=2)
        axis.axhline(1, color="0.25", linewidth=1, linestyle="--")
        axis.set_xticks(range(len(shown)), [textwrap.fill(workload, 13) for workload in shown])
        axis.set_title("forward" if direction == FORWARD else "forward and features' gradient", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("times as fast as torchvision")
    figure.suptitle(f"Speed of the default forms relative to torchvision (dashed): {note}", fontsize="medium")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=len(operations), loc="outside lower center")
    return figure


def _draw_times(rows: Sequence[Row], note: str) -> Figure:
    """Points: the time of every form of every operation, on a logarithmic axis."""
    workloads = [workload for (workload,) in _by(rows, "workload")]
    directions = [direction for direction in (FORWARD, BACKWARD) if any(row["direction"] == direction for row in rows)]
    operations = list(_by(rows, "operation", "reduction", "samples"))
    forms = sorted((form for (form,) in _by(rows, "form")), key=lambda form: form in MARKS)  # ours first
    marks = {form: MARKS.get(form, {"color": COLORS[number % len(COLORS)], "marker": "o"}) for number, form in enumerate(forms)}
    size = (2.4 + 2.3 * len(workloads), 1.3 + len(directions) * (0.7 + 0.38 * len(operations)))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(directions), len(workloads), sharex=True, sharey=True, squeeze=False)
    for line, direction in zip(grid, directions, strict=True):
        for axis, workload in zip(line, workloads, strict=True):
            here = [row for row in rows if (row["direction"], row["workload"]) == (direction, workload)]
            for number, form in enumerate(forms):
                shift = 0.5 * ((number + 0.5) / len(forms) - 0.5)  # lest points of equal time hide each other
                points = [(row["median_ms"], operations.index(_key(row)) + shift) for row in here if row["form"] == form]
                style = {"linestyle": "", "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.6, **marks[form]}
                axis.plot([time for time, _ in points], [place for _, place in points], label=form, **style)
            if not here:
                known = WORKLOADS.get(workload)
                reason = "inference only" if known and not known.training else "not measured"
                axis.text(0.5, 0.5, reason, transform=axis.transAxes, ha="center", va="center", color="0.5", fontsize="small")
            axis.grid(axis="x", alpha=0.3)
            axis.grid(axis="y", alpha=0.15)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(axis="y", length=0)
        line[0].set_ylabel("forward" if direction == FORWARD else "with gradient")
    grid[0][0].set(xscale="log", yticks=range(len(operations)), yticklabels=map(_title, operations), ylim=(len(operations) - 0.4, -0.6))
    grid[0][0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    grid[0][0].xaxis.set_minor_formatter(NullFormatter())
    for axis, workload in zip(grid[0], workloads, strict=True):
        axis.set_title(workload, fontsize="medium")
    for axis in grid[-1]:
        axis.set_xlabel("milliseconds")
    figure.suptitle(f"Time of each form: {note}", fontsize="medium")
    figure.legend(*grid[0][0].get_legend_handles_labels(), frameon=False, ncols=len(forms), loc="outside lower center")
    return figure


def _caption(picture: str) -> str:
    return "Speed relative to torchvision" if picture.endswith("_speed.png") else "Time of each form"


def _owner(picture: str, results: Iterable[str]) -> str:
    """roi_ops_tpu_measured_times.png does not belong to roi_ops_tpu."""
    return max((name for name in results if picture.startswith(f"{name}_")), key=len)


# ---------------------------------------------------------------- the program


def render(folder: Path = RESULTS) -> None:
    """Draws the pictures and writes the page beside the result files; renews README.md if they are the published ones."""
    results = read_results(folder)
    pictures = [picture for name, content in results.items() for picture in draw(name, content, folder)]
    write_text(folder / TABLES, tables(results, pictures))
    if folder.resolve() == RESULTS.resolve():
        readme = README.read_text()
        if rendered(readme, results) != readme:
            write_text(README, rendered(readme, results))


def rendered(readme: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The README with its short table renewed; as it is if it has no place for one."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return f"{before}{BEGIN}\n{summary(results)}\n{END}{after}" if begin and end else readme


def main(arguments: Sequence[str]) -> int:
    """Renders the results of a folder; returns the exit status."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else RESULTS
    if not any(folder.glob(PATTERN)):
        print(f"{folder} holds no {PATTERN}: run `python -m benchmarks.roi.measure` first.", file=sys.stderr)
        return 2
    try:
        render(folder)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Wrote {folder / TABLES}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
