"""Page and plot of the data pipeline's benchmark."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PUBLISHED = 62 / 8
"""Images per second per V100 of Detectron2's benchmark of Mask R-CNN with ResNet-50-FPN: 62 on eight."""
RATES = (PUBLISHED, 25, 50, 100)


def markdown(result: dict[str, Any], picture: str) -> str:
    """Returns the page of a result; ``picture`` is the plot's name."""
    data, machine, wait, memory = (result[name] for name in ("data", "machine", "waiting", "memory"))
    (height, width), padded = data["median_size"], data["padded_size"]
    per_core, warmup, steps = (result[name] for name in ("images_per_second_per_core", "warmup", "steps"))
    first, last = memory["megabytes"][0][1], memory["megabytes"][-1][1]
    stages = "\n".join(f"| {stage} | {time:.2f} |" for stage, time in result["stages_ms"].items())
    names = [f"{rate:g}{' (Detectron2 on a V100, as published)' * (rate == PUBLISHED)}" for rate in RATES]
    cores = "\n".join(
        f"| {name} | {rate / per_core:.2f} | {8 * rate / per_core:.1f} |"
        for name, rate in zip(names, RATES, strict=True)
    )
    return f"""# Data pipeline

Made by `{result["command"]}` on {machine["processor"]}, {machine["cores"]} cores,
with a load average of {machine["load_before"]:.2f} from other work at the start.

Training batches of `{result["experiment"]}`: {data["images"]} images of {data["set"]}
(median {width} x {height} pixels, {data["objects_per_image"]:g} objects), resized and padded to
{padded[1]} x {padded[0]}, {result["images_per_step"]} images a step, {result["threads"]} threads.

| | |
|---|---|
| images per second, {result["busy_cores"]:.2f} cores busy | {result["images_per_second"]:.1f} |
| images per second per busy core | {per_core:.1f} |
| resident memory after {warmup} steps and {steps:,} later | {first:.0f} and {last:.0f} MB |
| growth from the median of the first tenth of steps to that of the last | {memory["growth_percent"]:.1f}% |

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

With a device that computes for {wait["step_seconds"]:g} s, a loop of {wait["steps"]} steps waited
{wait["mean_ms"]:.1f} ms per step for its batch ({wait["percentile_99_ms"]:.1f} ms at the 99th percentile),
{wait["share_percent"]:.1f}% of its time; {wait["own_work_ms"]:.1f} ms of it were spent stacking the images.
A real loop asks for the next batch while the device computes, so this wait is hidden, too.
"""


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
