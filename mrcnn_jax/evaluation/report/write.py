"""Writes analysis.json, figures and report.html."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from mrcnn_jax.atomic_io import replacing, write_json, write_text
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.evaluation.coco import Metrics
from mrcnn_jax.evaluation.report.files import ANALYSIS, REPORT
from mrcnn_jax.evaluation.report.findings import NAMES
from mrcnn_jax.evaluation.report.html import page, shown, table
from mrcnn_jax.evaluation.report.pictures import Illustrator
from mrcnn_jax.evaluation.report.sections import draw_figures, kind_section, picture_section


def write_report(
    out: str | os.PathLike, title: str, split: DatasetSplit, results: Sequence[dict[str, Any]],
    metrics: Metrics, analyses: Mapping[str, dict[str, Any]],
) -> None:  # fmt: skip
    """Writes the report of an evaluation.

    Args:
        out: directory of the files.
        title: of the report.
        split: images and objects.
        results: entries of a COCO results file.
        metrics: of ``evaluate_coco``.
        analyses: from ``analyze``, of one or more kinds.
    """
    folder = epath.Path(out)
    origin = {"dataset": str(split.directory), "split": split.split}  # on which the evaluation was
    write_json(folder / ANALYSIS, origin | {"kinds": analyses}, indent=None)
    sections = [_metrics_table({kind: metrics[kind] for kind in analyses})]
    for kind, analysis in analyses.items():
        figures = draw_figures(analysis)
        for name, content in figures.items():
            with replacing(folder / f"figures/{kind}_{name}.png") as temporary:
                temporary.write_bytes(content)
        sections.append(kind_section(NAMES[kind], analysis, figures))
    kind = "segm" if "segm" in analyses else next(iter(analyses))
    illustrator = Illustrator(split, results, analyses[kind]["min_score"])
    sections.append(picture_section(analyses[kind], illustrator))
    counts = f"{len(split):,} images, {analyses[kind]['objects']:,} objects, {len(results):,} detections"
    subtitle = f"{Path(split.directory).name}/{split.split}: {counts}. Errors are judged at IoU 0.5."
    write_text(folder / REPORT, page(title, subtitle, "".join(sections)))


def _metrics_table(metrics: Metrics) -> str:
    names = [name for name in dict.fromkeys(sum(map(list, metrics.values()), [])) if name != "per_class"]
    rows = [(NAMES[kind], *(shown(of_kind.get(name)) for name in names)) for kind, of_kind in metrics.items()]
    return table(("", *names), rows)
