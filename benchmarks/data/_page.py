"""Page and plot of the data pipeline's benchmark."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PUBLISHED = 62 / 8
"""Images per second per V100 of Detectron2's benchmark of Mask R-CNN with ResNet-50-FPN: 62 on eight."""
RATES = {PUBLISHED: " (Detectron2 on a V100, as published)", 25: "", 50: "", 100: ""}


PAGE = """\
# Data pipeline

Made by `{command}` on {machine[processor]}, {machine[cores]} cores,
with a load average of {machine[load_before]:.2f} from other work at the start.

Training batches of `{experiment}`: {data[images]} images of {data[set]}
(median {median_size} pixels, {data[objects_per_image]:g} objects), resized and padded to
{padded_size}, {images_per_step} images a step, {threads} threads.

| | |
|---|---|
| images per second, {busy_cores:.2f} cores busy | {images_per_second:.1f} |
| images per second per busy core | {images_per_second_per_core:.1f} |
| resident memory after {warmup} steps and {steps:,} later | {memory[megabytes][0][1]:.0f} and {last:.0f} MB |
| growth from the median of the first tenth of steps to that of the last | {memory[growth_percent]:.1f}% |

![Resident memory over the steps]({picture})

## Costs of the stages

Milliseconds of one thread per image:

| | |
|---|---|
{stages}

## Cores needed per device

Busy cores needed for one device, and for the eight of a host. A pipeline that is only just fast enough makes
the devices wait now and then, so have twice as many.

| images per second that a device trains | cores for one | cores for eight |
|---|---|---|
{cores}

With a device that computes for {waiting[step_seconds]:g} s, a loop of {waiting[steps]} steps waited
{waiting[mean_ms]:.1f} ms per step for its batch ({waiting[percentile_99_ms]:.1f} ms at the 99th percentile),
{waiting[share_percent]:.1f}% of its time; {waiting[own_work_ms]:.1f} ms of it were spent stacking the images.
A real loop asks for the next batch while the device computes, so this wait is hidden, too.
"""


def markdown(result: dict[str, Any], picture: str) -> str:
    """Returns the page of a result; ``picture`` is the plot's name."""
    stages = "\n".join(f"| {stage} | {time:.2f} |" for stage, time in result["stages_ms"].items())
    per_core, (_, last) = result["images_per_second_per_core"], result["memory"]["megabytes"][-1]
    cores = "\n".join(
        f"| {rate:g}{source} | {rate / per_core:.2f} | {8 * rate / per_core:.1f} |"
        for rate, source in RATES.items()
    )
    sizes = {name: "{1} x {0}".format(*result["data"][name]) for name in ("median_size", "padded_size")}
    return PAGE.format(**result, **sizes, picture=picture, stages=stages, cores=cores, last=last)


def plot(result: dict[str, Any], path: Path) -> None:
    """Saves a plot of resident memory over the steps as a PNG."""
    steps, megabytes = np.array(result["memory"]["megabytes"]).T
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(steps, megabytes, color="#0072b2", linewidth=1.5)
    axis.set(xlabel=f"step after {result['warmup']}", ylabel="resident memory, MB")
    axis.set(xlim=(0, steps[-1]), ylim=(0, 1.15 * megabytes.max()))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
