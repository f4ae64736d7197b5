"""Tables of single runs, from their result files: all of them for RESULTS.md, five of them for README.md."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks import _markdown
from experiments._results import (
    METRICS,
    RESULTS,
    TABLES_FOLDER,
    figures_of,
    hardware_of,
    load_runs,
    load_seeds,
)
from mrcnn_jax.errors import InputError

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
INTRODUCTION = """\
One run with one seed each, on a machine that was shared with other work. AP in percent, as COCO defines
it."""


class Highlight(NamedTuple):
    """A line of README's table: a single run."""

    title: str
    data: str
    run: str


HIGHLIGHTS = (
    Highlight("Embedded demo", "`shapes`, drawn by the program, 200 validation images", "demo"),
    Highlight("Nuclei", "BBBC038 (2018 Data Science Bowl), 504 training and 80 validation images", "nuclei"),
    Highlight("Fruits and nuts", "15 photos", "fruits"),
    Highlight("Boxes, masks and keypoints", "`shapes`, seven keypoints", "shapes_keypoints"),
)


def runs_section(results: Path = RESULTS) -> list[str]:
    """Returns the paragraphs of RESULTS.md on single runs."""
    figures = [(kind, figure) for kind in ("segm", "bbox", "keypoints") for figure in ("AP", "AP50", "AP75")]
    heads = ["run", *(f"{METRICS[kind]} {figure}" for kind, figure in figures),
             "steps x images", "minutes", "hardware", "command", "remarks"]  # fmt: skip
    rows = []
    for name, result in load_runs(results).items():
        values = [result["metrics"].get(kind, {}).get(figure) for kind, figure in figures]
        rows.append([
            f"[{name}](results/{name}.json)",
            *("-" if value is None else f"{value:.1f}" for value in values),
            f"{result['steps']} x {result['images_per_step']}", f"{result['training_seconds'] / 60:.0f}",
            hardware_of(result), f"`{result['command']}`", result.get("note", ""),
        ])  # fmt: skip
    return ["## Single runs", INTRODUCTION, _markdown.table(heads, rows)]


def readme_table(results: Path = RESULTS) -> str:
    """Returns README's table of results: four runs, and RoIAlign against RoIPool (table 2d)."""
    runs = load_runs(results)
    rows = [_highlight(each, runs[each.run]) for each in HIGHLIGHTS]
    rows.append(_roi_align_gain(results / TABLES_FOLDER.name))
    return _markdown.table(["", "data", "mask AP", "box AP", "training time", "hardware", "command"], rows)


def _highlight(highlight: Highlight, result: Mapping[str, Any]) -> list[str]:
    metrics = result["metrics"]
    keypoints = f" (keypoint AP {metrics['keypoints']['AP']:.1f})" if "keypoints" in metrics else ""
    return [
        f"[{highlight.title}](experiments/results/{highlight.run}.json)", highlight.data,
        f"{metrics['segm']['AP']:.1f}", f"{metrics['bbox']['AP']:.1f}{keypoints}",
        f"{result['training_seconds'] / 60:.0f} min", hardware_of(result), f"`{result['command']}`",
    ]  # fmt: skip


def _roi_align_gain(folder: Path) -> list[str]:
    rows = [load_seeds("shapes", name, folder) for name in ("r50_c5", "r50_c5_roipool")]
    gains = [
        " against ".join(f"{figures_of(row, kind, 'AP'):.1f}" for row in rows) for kind in ("segm", "bbox")
    ]
    minutes = mean(run["training_seconds"] for row in rows for run in row.values()) / 60
    seeds = min(len(row) for row in rows)
    return [
        "[RoIAlign against RoIPool, stride 32](experiments/RESULTS.md) (table 2d)",
        f"`shapes`, {seeds} seeds", *gains,
        f"{minutes:.0f} min per run", hardware_of(next(iter(rows[0].values()))),
        f"`python -m experiments.run table2d --seeds {seeds}`",
    ]  # fmt: skip


def update_readme(readme: str, results: Path = RESULTS) -> str:
    """Returns README's text with the table between its markers renewed; InputError without the markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(f"README.md has no lines {BEGIN} and {END} for the table of results")
    return f"{before}{BEGIN}\n{readme_table(results)}\n{END}{after}"
