"""The section of RESULTS.md on real photos, and its learning curves, made from the results of
experiments.evidence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import _markdown
from experiments._results import EVIDENCE, METRICS, hardware_of, load_runs
from experiments.evidence import PROGRAM, ROWS, TASKS, name_of
from mrcnn_jax.visualize.plots import plot_comparison

TEXT = f"""\
Small sets of real photos: the preset `finetune` with a ResNet-50 that has seen ImageNet (and was fine-tuned
for another task), images of at most 256 x 352 pixels and lighter heads, on two CPU cores. Each row does
without one ingredient; one run with one seed each, on a machine that was shared with other work. The row
without moving average is the run with everything, evaluated by its last parameters: as a cosine ends at a
learning rate of 0, they have hardly moved while they were averaged. AP in percent. `{PROGRAM} TASK` runs the
rows of a task."""


def evidence_section(folder: Path = EVIDENCE) -> Iterator[str]:
    """Yields the paragraphs of the section; nothing without results."""
    found = _found(folder)
    if not found:
        return
    yield "## Real photos on two CPU cores"
    yield TEXT
    for task, results in found.items():
        yield f"### {TASKS[task].title}"
        yield _table(results)
        yield f"![Learning curves]({_plot(task, folder).relative_to(folder.parent.parent)})"


def write_evidence_plots(folder: Path = EVIDENCE) -> list[Path]:
    """Writes the learning curves of each task with results; returns their paths."""
    files = []
    for task, results in _found(folder).items():
        plot_comparison({row: result["history"] for row, result in results.items()}, _plot(task, folder))
        files.append(_plot(task, folder))
    return files


def _plot(task: str, folder: Path) -> Path:
    return folder / f"{task}.png"


def _found(folder: Path) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Returns the results by task and row, in the order of both."""
    runs = load_runs(folder)
    found = {}
    for task in TASKS:
        names = {row: name_of(task, row) for row in ROWS}
        found[task] = {row: runs[name] for row, name in names.items() if name in runs}
    return {task: results for task, results in found.items() if results}


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    kinds = [kind for kind in METRICS if any(kind in result["metrics"] for result in results.values())]
    heads = ["row", *(f"{METRICS[kind]} {name}" for kind in kinds for name in ("AP", "AP50")),
             "steps x images", "minutes of training", "hardware"]  # fmt: skip
    lines = []
    for row, result in results.items():
        values = [result["metrics"][kind][name] for kind in kinds for name in ("AP", "AP50")]
        lines.append([
            row, *(f"{value:.1f}" for value in values), f"{result['steps']} x {result['images_per_step']}",
            f"{result['training_seconds'] / 60:.0f}", hardware_of(result),
        ])  # fmt: skip
    return _markdown.table(heads, lines)
