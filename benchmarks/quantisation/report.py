"""Page and pictures of the measurements of ``benchmarks.quantisation.measure``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from benchmarks._figures import new_figure, style
from benchmarks._markdown import fill, table

# by operation and stride: the bins' places, and the masks as read and undone with their IoU
Panels = Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#d55e00")


def _rows(result):
    """Returns the rows by operation, stride and size, and the sizes in order."""
    rows = {(row["operation"], row["stride"], row["size"]): row for row in result["rows"]}
    return rows, list(dict.fromkeys(size for *_, size in rows))


def markdown(result: dict[str, Any], picture: str, example: str) -> str:
    """Renders the measurements as tables and a summary in words, every number of which is measured."""
    rows, sizes = _rows(result)

    def rendered(text, rest=lambda at, constant: (), heads=()):
        lines = []
        for constant in result["constants"]:
            at = constant["operation"], constant["stride"]
            lines.append([*at, *(text(rows[*at, size]) for size in sizes), *rest(at, constant)])
        return table(["operation", "stride", *(f"{size} px" for size in sizes), *heads], lines)

    def rest(at, constant):
        largest = max(rows[*at, size]["largest"] for size in sizes)
        cells = ", ".join(f"{constant[axis] / at[1]:z.2f}" for axis in "xy")
        return cells, f"{constant['rest_rms']:.1f}", f"{largest:.1f}"

    def undone(operation):
        return [f"{rows[operation, stride, 64]['constant_undone']['iou']:.2f}" for stride in (16, 32)]

    strides = list(dict.fromkeys(stride for _, stride, _ in rows))
    means = [np.mean([rows["RoIPool", stride, size]["mean"] for size in sizes]) for stride in strides]
    return fill(
        "QUANTISATION.md",
        **result | {"ceiling": result["ceiling"]["iou"]}, cells=2 * result["bins"], picture=picture,
        example=example, pool=undone("RoIPool"), warp=undone("RoIWarp"),
        means=_listed(f"{mean:.1f}" for mean in means), strides=_listed(map(str, strides)),
        exact=max(row["largest"] for row in result["rows"] if row["operation"] == "RoIAlign"),
        displacement=rendered(
            lambda row: f"{row['mean']:.1f} ({row['percentile_95']:.1f})", rest,
            ("constant x, y", "rest", "largest"),
        ),
        as_read=rendered(lambda row: f"{row['as_read']['iou']:.2f}"),
        undone=rendered(lambda row: f"{row['constant_undone']['iou']:.2f}"),
        above=rendered(lambda row: f"{100 * row['constant_undone']['above_075']:.0f}"),
        above_ceiling=100 * result["ceiling"]["above_075"],
    )  # fmt: skip


def _listed(words):
    *words, last = words
    return f"{', '.join(words)} and {last}"


def plot(result: dict[str, Any]) -> Figure:
    """Plots displacement (above) and attainable mask IoU (below) over RoI sizes, one column a stride."""
    rows, sizes = _rows(result)
    operations, strides = (list(dict.fromkeys(values)) for values in list(zip(*rows, strict=True))[:2])
    figure = new_figure(13, 7)
    axes = figure.subplots(2, len(strides), sharex=True, sharey="row")
    for (above, below), stride in zip(axes.T, strides, strict=True):
        below.axhline(result["ceiling"]["iou"], color="0.5", linewidth=1, linestyle=":")
        for operation, colour in zip(operations, COLOURS, strict=True):
            of_sizes = [rows[operation, stride, size] for size in sizes]
            line = {"color": colour, "marker": "o", "markersize": 3.5}
            broad = 4 if operation == "RoIAlign" else 1.8  # others lie on it and must leave it visible
            mean, high = ([row[name] for row in of_sizes] for name in ("mean", "percentile_95"))
            above.fill_between(sizes, mean, high, color=colour, alpha=0.12, linewidth=0)
            above.plot(sizes, mean, **line, linewidth=broad)
            below.plot(sizes, [row["constant_undone"]["iou"] for row in of_sizes], **line, linewidth=broad)
            below.plot(sizes, [row["as_read"]["iou"] for row in of_sizes], "--", **line, linewidth=1.2)
        above.set_title(f"stride {stride}", fontsize=11)
        above.set_xscale("log", base=2)
        below.set(xticks=sizes, xticklabels=sizes, xlabel="RoI size, pixels")
        for axis in (above, below):
            style(axis)
    axes[0, 0].set(ylabel="displacement of a bin, pixels", ylim=(-0.5, None))
    axes[1, 0].set(ylabel="attainable mask IoU", ylim=(0, 1.02))
    named = zip(operations, COLOURS, strict=True)
    lines = [Line2D([], [], color=colour, linewidth=2.5, label=operation) for operation, colour in named]
    styles = [
        Patch(color="0.5", alpha=0.25, label="mean to 95th percentile"),
        Line2D([], [], color="0.3", linestyle="--", label="as read"),
        Line2D([], [], color="0.3", label="constant part undone"),
        Line2D([], [], color="0.5", linestyle=":", label="no displacement"),
    ]
    for handles, side in ((lines, "upper"), (styles, "lower")):
        figure.legend(handles=handles, frameon=False, ncols=len(handles), loc=f"outside {side} center")
    return figure


def draw_example(panels: Panels, truth: np.ndarray, box: np.ndarray) -> Figure:
    """Draws one object with the places where its bins are read, and the masks attainable from them."""
    x1, y1, x2, y2 = box
    operations, strides = list(dict.fromkeys(operation for operation, _ in panels)), (16, 32)
    figure = new_figure(12, 4.6 * len(strides))
    axes = figure.subplots(len(strides), len(operations), sharex=True, sharey=True)
    for column, operation, colour in zip(axes.T, operations, COLOURS, strict=True):
        for axis, stride in zip(column, strides, strict=True):
            places, masks, iou = panels[operation, stride]
            for draw_line, end in (axis.axvline, x2 + 40), (axis.axhline, y2 + 40):
                for position in np.arange(0, end, stride):
                    draw_line(position, color="0.88", linewidth=0.7, zorder=0.5)
            axis.contourf(*_raster(truth, box), levels=[0.5, 1], colors=["0.8"])
            axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color="0.3", linewidth=1)
            axis.plot(*places.reshape(-1, 2).T, ".", color="0.15", markersize=2.2)
            for mask, dashes, width in zip(masks, ("--", "-"), (1.2, 1.8), strict=True):
                line = {"colors": [colour], "linewidths": width, "linestyles": dashes}
                axis.contour(*_raster(mask, box), levels=[0.5], **line)
            axis.set(xlim=(x1 - 24, x2 + 40), ylim=(y2 + 40, y1 - 24), aspect="equal", xticks=[], yticks=[])
            title = f"{operation}, stride {stride}\nIoU {iou[0]:.2f}, {iou[1]:.2f} undone"
            axis.set_title(title, fontsize=10)
    words = "grey: object in its RoI; dots: where the bins are read; lines: cells; attainable mask "
    figure.supxlabel(f"{words}dashed: as read, solid: constant part undone", fontsize=10)
    return figure


def _raster(mask, box):
    """Returns x, y and values of a mask over a box, with a rim of zeros that closes its contours."""
    framed = np.pad(mask.astype(float), 1)
    share = (np.arange(len(framed)) - 0.5) / len(mask)
    return *(box[axis] + share * (box[2 + axis] - box[axis]) for axis in (0, 1)), framed
