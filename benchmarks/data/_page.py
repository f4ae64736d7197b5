"""Page and plot of the data pipeline's benchmark."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks._figures import COLORS, new_figure, style
from benchmarks._markdown import fill, table

PUBLISHED = 62 / 8
"""Images per second per V100 of Detectron2's benchmark of Mask R-CNN with ResNet-50-FPN: 62 on eight."""
RATES = {PUBLISHED: " (Detectron2 on a V100, as published)", 25: "", 50: "", 100: ""}


def markdown(result: dict[str, Any], picture: str) -> str:
    """Returns the page of a result; ``picture`` is the plot's name."""
    per_core, (_, last) = result["images_per_second_per_core"], result["memory"]["megabytes"][-1]
    stages = table(("", ""), ((stage, f"{time:.2f}") for stage, time in result["stages_ms"].items()))
    augmented = table(("augmentation", "ms per image", "images per second and core"), (
        (name, f"{time:.1f}", f"{1e3 / time:.0f}") for name, time in result["augmentations_ms"].items()
    ))  # fmt: skip
    cores = [(f"{rate:g}{source}", f"{rate / per_core:.2f}", f"{8 * rate / per_core:.1f}")
             for rate, source in RATES.items()]  # fmt: skip
    cores = table(("images per second that a device trains", "cores for one", "cores for eight"), cores)
    sizes = {name: "{1} x {0}".format(*result["data"][name]) for name in ("median_size", "padded_size")}
    return fill("LOADER.md", **result, **sizes, picture=picture, stages=stages, augmented=augmented,
                cores=cores, last=last)  # fmt: skip


def plot(result: dict[str, Any]) -> Figure:
    """Plots resident memory over the steps."""
    steps, megabytes = np.array(result["memory"]["megabytes"]).T
    figure = new_figure(7.5, 2.6)
    axis = figure.subplots()
    axis.plot(steps, megabytes, color=COLORS[0], linewidth=1.5)
    axis.set(xlabel=f"step after {result['warmup']}", ylabel="resident memory, MB")
    axis.set(xlim=(0, steps[-1]), ylim=(0, 1.15 * megabytes.max()))
    style(axis)
    return figure
