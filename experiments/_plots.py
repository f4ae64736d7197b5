"""Bar plots of the paper's tables: AP of each row, the paper's next to the measured."""

from math import nan
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments._results import METRICS, TABLES_FOLDER, figures_of
from experiments._tables_page import TableResults, heading, plot_file, shown_scales
from experiments.rows import TABLES, Table
from experiments.scales import SCALES, Scale
from mrcnn_jax.atomic_io import replacing


def write_plots(folder: Path = TABLES_FOLDER) -> list[Path]:
    """Writes the plots that RESULTS.md shows and removes others; returns their paths."""
    files = []
    for table in TABLES.values():
        shown = shown_scales(table, folder)
        for scale in SCALES.values():
            file = plot_file(table, scale, folder)
            if scale in shown:
                with replacing(file) as unfinished:
                    plot(table, scale, shown[scale]).savefig(unfinished, dpi=110)
                files.append(file)
            else:
                file.unlink(missing_ok=True)
    return files


def plot(table: Table, scale: Scale, results: TableResults) -> Figure:
    """Returns AP of each row as bars, with a dot for each seed and their standard deviation."""
    rows = [row.name for row in table.rows if row.name in results][::-1]
    ours = {
        kind: figures for kind in METRICS
        if any(kind in table.paper(row) for row in rows)
        and any(figures := [figures_of(results[row], kind, "AP") for row in rows])
    }  # fmt: skip
    figure = Figure(figsize=(1.8 + 4.2 * len(ours), 1.1 + 0.55 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(ours), squeeze=False)[0]
    for axis, (kind, figures) in zip(axes, ours.items(), strict=True):
        published = [table.paper(row).get(kind, {}).get("AP") or 0 for row in rows]
        axis.barh([y + 0.2 for y in range(len(rows))], published, 0.36, color="#bbbbbb", label="paper, COCO")
        places = [y - 0.2 for y in range(len(rows))]
        means = [one.mean if one else 0 for one in figures]
        errors = [one.deviation if one else nan for one in figures]
        axis.barh(places, means, 0.36, color="#0072b2", label=scale.name, xerr=errors,
                  error_kw={"elinewidth": 1, "capsize": 3})  # fmt: skip
        for place, one in zip(places, figures, strict=True):
            if one and len(one.values) > 1:
                axis.plot(one.values, [place] * len(one.values), "o", color="#d55e00", markersize=3)
        axis.set(yticks=range(len(rows)), xlabel=f"{METRICS[kind]} AP", xlim=(0, None))
        axis.set_yticklabels(rows if axis is axes[0] else [])
        axis.spines[["top", "right"]].set_visible(False)
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(heading(table), fontsize=10)
    return figure
