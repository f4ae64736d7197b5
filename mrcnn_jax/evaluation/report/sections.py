"""Sections of a report: figures and tables of the analysis of one kind, and pictures."""

from typing import Any

import numpy as np

from mrcnn_jax.evaluation.report.files import CAPTIONS
from mrcnn_jax.evaluation.report.findings import HINTS, confusions, findings
from mrcnn_jax.evaluation.report.html import escaped, grid, listing, picture, shown, table
from mrcnn_jax.evaluation.report.pictures import Illustrator
from mrcnn_jax.visualize.analysis_plots import (
    encode_png,
    plot_calibration,
    plot_confusion,
    plot_errors,
    plot_precision_recall,
    plot_scores,
    plot_sizes,
)

MAX_ROWS = 500
_SUSPECTS = {
    "not_annotated": "Confident detections where nothing is annotated",
    "other_class": "Confident detections of another class than annotated",
    "not_detected": "Objects that no detection overlaps",
}


def draw_figures(analysis: dict[str, Any]) -> dict[str, bytes]:
    """Draws all figures of an analysis as PNG files, with the keys of ``CAPTIONS``."""
    names, counts = analysis["confusion"]["classes"], analysis["confusion"]["counts"]
    matrix = np.zeros((len(names), len(names)), int)
    for row, column, number in counts:
        matrix[row, column] = number
    figures = {
        "precision_recall": plot_precision_recall(analysis["precision_recall"]),
        "scores": plot_scores(analysis["by_score"], analysis["best"], analysis["class_f1"]),
        "errors": plot_errors(analysis["errors"]),
        "sizes": plot_sizes(analysis["sizes"]),
        "calibration": plot_calibration(analysis["calibration"]["bins"]),
        "confusion": plot_confusion(names, matrix),
    }
    return {name: encode_png(figure) for name, figure in figures.items()}


def kind_section(heading: str, analysis: dict[str, Any], figures: dict[str, bytes]) -> str:
    """Returns the section of one kind; ``heading`` is text."""
    parts = [f"<h2>{escaped(heading)}</h2>", listing(findings(analysis))]
    parts.append(grid(picture(content, "png", CAPTIONS[name]) for name, content in figures.items()))
    parts += ["<h3>Kinds of errors</h3>", _error_table(analysis)]
    parts += ["<h3>Classes</h3>", _class_table(analysis)]
    if mixed := confusions(analysis)[:30]:
        parts += ["<h3>Confusions</h3>", table(("annotated", "detected as", "objects"), mixed, left=(0, 1))]
    return "".join(parts)


def picture_section(analysis: dict[str, Any], illustrator: Illustrator) -> str:
    """Returns pictures of mistakes and of suspected annotations."""
    note = f"Annotated on the left, detected above a score of {analysis['min_score']:.2f} on the right."
    parts = ["<h2>Images with most mistakes</h2>", f'<p class="muted">{note}</p>']
    worst = illustrator.worst(analysis["worst_images"])
    parts.append(grid(picture(each.content, "jpeg", each.caption) for each in worst))
    if not worst:
        parts.append("<p>There is no mistake.</p>")
    for name, heading in _SUSPECTS.items():
        if found := illustrator.suspects(analysis["suspected_annotations"][name]):
            figures = grid((picture(each.content, "jpeg", each.caption) for each in found), "small")
            parts += [f"<h3>{heading}</h3>", figures]
    return "".join(parts)


def _error_table(analysis: dict[str, Any]) -> str:
    rows = [
        (name.replace("_", " "), values["count"], shown(values["confident"], 0), shown(values["gain"]),
         HINTS.get(name, [""])[0])
        for name, values in analysis["errors"].items()
    ]  # fmt: skip
    header = "error", "number", f"score from {analysis['min_score']:.2f}", "AP50 gained", "meaning"
    return table(header, rows, left=(0, 4))


def _class_table(analysis: dict[str, Any]) -> str:
    classes = sorted(analysis["classes"], key=lambda row: -row["objects"])
    header = "class", "objects", "detections", "AP", "AP50", "AR", "best score", "F1", "costliest error"
    rows = []
    for row in classes[:MAX_ROWS]:
        best = row["best"] or {}
        precisions = (shown(row[key]) for key in ("AP", "AP50", "AR"))
        error = f"{row['error']} ({row['gain']:.1f})" if row["error"] else "–"
        rows.append((
            row["class"], row["objects"], row["detections"], *precisions, shown(best.get("scores"), 2),
            shown(best.get("f1"), 2), error,
        ))  # fmt: skip
    left = len(classes) - MAX_ROWS
    more = f'<p class="muted">{left:,} more classes are in analysis.json.</p>' if left > 0 else ""
    return table(header, rows, left=(0, 8)) + more
