"""Renders the results of whole detectors as a page with plots: python -m benchmarks.model.report [FOLDER]."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks._figures import new_figure, style
from benchmarks._markdown import fill, machine_name, number, read_results, table, write_page
from benchmarks._program import RESULTS, render_files

PROGRAM, PAGE = "python -m benchmarks.model.report", "MODEL.md"


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Reads the result files of a folder by their stems; InputError if there are none."""
    return read_results(folder, "model_*.json", "python -m benchmarks.model.measure")


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders the page."""
    parts = [fill(PAGE)]
    for name, content in results.items():
        parts += _section(name, content)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _section(name: str, content: Mapping[str, Any]) -> Iterator[str]:
    """Yields the parts of the page for a result file."""
    machine, rows = content["machine"], content["rows"]
    yield f"## {machine_name(machine)}"
    facts = [f"{key} {machine[key]}" for key in ("jax", "torch", "torchvision", "commit") if machine.get(key)]
    height, width = machine["size"]
    images = f"{machine['images']} of {height} x {width} pixels"
    facts += [images, f"{machine['objects']} objects in a training image"]
    yield "; ".join([f"`{content['command']}`", *facts])
    heads = ("model", "work", "batch", "seconds", "images per second", "TFLOP", "share of peak", "memory, GB",
             "compiling, s", "detections or mask RoIs", "speed relative to torchvision")  # fmt: skip
    measured = [row for row in rows if row["seconds"]]
    yield table(heads, map(_cells, measured))
    for row in rows:
        if "unavailable" in row:
            yield f"Not available: {_title(row)} ({row['unavailable']})."
        for variant, each in row["torchvision"].items():
            if "unavailable" in each:
                yield f"Not available: {_title(row)}, torchvision, {variant} ({each['unavailable']})."
    with_stages = [row for row in measured if row["stages"]]
    if with_stages:
        yield f"![Seconds of the stages]({name}.png)"
    for row in with_stages:
        yield f"### {_title(row)}"
        yield _stage_table(row)


def _title(row: Mapping[str, Any]) -> str:
    """Names a row."""
    return f"{row['model']}, {row['work']}, {row['batch']} x {row['dtype']}"


def speed(row: Mapping[str, Any], variant: str) -> float:
    """Returns the median speed relative to a variant of torchvision."""
    pairs = zip(row["seconds"]["ours"], row["seconds"][variant], strict=False)
    return median(theirs / ours for ours, theirs in pairs)


def _cells(row: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a row of the main table."""
    taken, flops = row["seconds"], row["flops"]
    seconds, peak = median(taken["ours"]), row["peak_flops"] / median(taken["matrix product"])
    counts = {"ours": row["objects"]} | {
        name: each["objects"] for name, each in row["torchvision"].items() if "objects" in each
    }
    speeds = [f"{name} {number(speed(row, name), 3)}x" for name in taken if name in row["torchvision"]]
    return [
        row["model"], row["work"], f"{row['batch']} x {row['dtype']}", number(seconds),
        number(row["batch"] / seconds), number(flops, scale=1e-12),
        f"{100 * flops / seconds / peak:.0f}% of {number(peak, scale=1e-12)} TFLOP/s",
        number(row["memory_bytes"], scale=1e-9), number(row["compile_seconds"]) or "-",
        "; ".join(f"{name} {', '.join(map(str, numbers))}" for name, numbers in counts.items()),
        "; ".join(speeds) or "-",
    ]  # fmt: skip


def _stages(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the median seconds of each stage, by who was measured."""
    return {
        name: {stage: median(each[stage] for each in rounds) for stage in rounds[0]}
        for name, rounds in row["stages"].items()
    }


def _stage_table(row: Mapping[str, Any]) -> str:
    """Renders a row's stages: milliseconds of ours and torchvision's, and the speed."""
    ours, *others = _stages(row).values()
    names = [f"torchvision, {name}, ms" for name in row["stages"] if name != "ours"]
    lines = [
        [stage, number(seconds, scale=1e3),
         *(number(other[stage], scale=1e3) for other in others),
         *(f"{number(other[stage] / seconds)}x" for other in others)]
        for stage, seconds in ours.items()
    ]  # fmt: skip
    total = [sum(each.values()) for each in (ours, *others)]
    lines.append(["sum", *(number(each, scale=1e3) for each in total),
                  *(f"{number(each / total[0])}x" for each in total[1:])])  # fmt: skip
    return table(["stage", "ours, ms", *names, *("speed of ours" for _ in others)], lines)


def draw(content: Mapping[str, Any]) -> Figure | None:
    """Draws the stages of all rows as stacked bars, in seconds; None if there are none."""
    bars = {
        f"{_title(row)}\n{'ours' if name == 'ours' else f'torchvision, {name}'}": stages
        for row in content["rows"] for name, stages in _stages(row).items()
    }  # fmt: skip
    if not bars:
        return None
    figure = new_figure(11, 1.6 + 0.55 * len(bars), machine_name(content["machine"]))
    axis = figure.subplots()
    left = dict.fromkeys(bars, 0.0)
    names = dict.fromkeys(stage for stages in bars.values() for stage in stages)
    for index, stage in enumerate(names):
        here = {bar: stages[stage] for bar, stages in bars.items() if stage in stages}
        starts = [left[bar] for bar in here]
        look = {"label": stage, "color": colormaps["tab20"](index)}
        axis.barh(list(here), list(here.values()), left=starts, **look)
        left |= {bar: left[bar] + seconds for bar, seconds in here.items()}
    axis.set(xlabel="seconds")
    axis.invert_yaxis()
    style(axis, "x")
    figure.legend(frameon=False, ncols=7, loc="outside lower center", fontsize="small")
    return figure


def render(folder: Path = RESULTS) -> list[Path]:
    """Draws the plots and writes the page beside the result files; returns them."""
    results = read(folder)
    figures = {name: draw(content) for name, content in results.items()}
    figures = {name: figure for name, figure in figures.items() if figure}
    return write_page(folder / PAGE, page(results), **figures)


def main(arguments: list[str] | None = None) -> int:
    """Renders the results of a folder; returns the exit status."""
    return render_files(PROGRAM, render, arguments)


if __name__ == "__main__":
    sys.exit(main())
