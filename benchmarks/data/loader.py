"""python -m benchmarks.data.loader --dataset DIR [--experiment NAME] [--steps N] ...: can the data pipeline keep up, and does its memory stay?

Runs the batches of training over a prepared data set, at an experiment's own settings, and measures what a host of GPUs or TPU chips must know:

- images a second, and for each core that was busy, from the processor's time of all threads;
- resident memory from the warm-up to the end, where a leak would show;
- what an image costs where: reading, decoding, resizing, masks, in one thread;
- how long a training loop waits for its batches while a device computes for a given time (the host sleeps meanwhile).
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from benchmarks._program import check, command_line, processor, write_files
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import replacing, write_json
from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.data.resize import resized_size
from mrcnn_jax.data.transforms import (
    crop_mask,
    decode_mask,
    decode_record,
    padded_size,
    resize_and_pad,
    training_example,
)
from mrcnn_jax.errors import InputError

PROGRAM = "python -m benchmarks.data.loader"
RESULT = Path(__file__).parents[1] / "results" / "loader.json"
PUBLISHED = 62 / 8
"""Images a second that one V100 trains in Detectron2's own benchmark of Mask R-CNN with ResNet-50-FPN: 62 on eight."""
DEMANDS = (PUBLISHED, 25, 50, 100)
EVERY = 10  # steps between looks at the memory
MEGABYTE = 2**20


@dataclass(frozen=True)
class Options:
    """Measure the speed, the memory and the lead of the data pipeline."""

    dataset: str
    """What `mrcnn dataset` wrote."""
    experiment: str = "mask_rcnn_r50_fpn"
    """Whose image sizes, object slots and threads; `mrcnn train` lists them."""
    steps: int = 1000
    warmup: int = 100
    """Steps before the clock starts."""
    images_per_step: int = 2
    threads: int = 0
    """0: as many as the experiment says."""
    step_seconds: float = round(2 / PUBLISHED, 3)
    """How long the device of the waiting loop computes; by default what two images take on a V100 with Detectron2, as published."""
    waiting_steps: int = 200
    """Steps of that loop."""
    out: Path = RESULT
    """Where the figures go, as JSON; beside it a page (NAME.md, in capitals) and a plot (.png)."""


# ---- measurements


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError as error:
        raise InputError(f"cannot read /proc/self/statm ({error.strerror}): resident memory is measured on Linux only") from error


def run_through(batches: Iterator, warmup: int, steps: int, images_per_step: int) -> dict[str, Any]:
    """Takes all batches as fast as they come: images a second, the processor's time, and resident memory on the way."""
    memory = []
    for _ in range(warmup):
        next(batches)
    begin, processor = time.perf_counter(), time.process_time()
    for step in track(range(steps), description="batches", console=Console(stderr=True)):
        if step % EVERY == 0:
            memory.append((step, round(resident_bytes() / MEGABYTE, 1)))
        next(batches)
    wall, processor = time.perf_counter() - begin, time.process_time() - processor
    memory.append((steps, round(resident_bytes() / MEGABYTE, 1)))
    images = steps * images_per_step
    return {
        "images_per_second": round(images / wall, 1),
        "images_per_second_per_core": round(images / processor, 1),
        "busy_cores": round(processor / wall, 2),
        "memory": {"growth_percent": round(growth(memory), 2), "megabytes": memory},
    }


def growth(memory: list[tuple[int, float]]) -> float:
    """By how many percent the median of the last tenth of the looks is above that of the first tenth."""
    tenth = max(1, len(memory) // 10)
    first, last = (np.median([megabytes for _, megabytes in part]) for part in (memory[:tenth], memory[-tenth:]))
    return float(100 * (last / first - 1))


def wait_for(batches: Iterator, steps: int, step_seconds: float) -> dict[str, float]:
    """What a loop waits for its batches whose device computes for a given time, and how much of that is its own thread's work, stacking images.

    The first batch, for which any loop waits, does not count.
    """
    next(batches)
    waits, work = [], 0.0
    for _ in track(range(steps), description="waiting loop", console=Console(stderr=True)):
        time.sleep(step_seconds)
        begin, thread = time.perf_counter(), time.thread_time()
        next(batches)
        waits.append(time.perf_counter() - begin)
        work += time.thread_time() - thread
    return {
        "step_seconds": step_seconds,
        "steps": steps,
        "mean_ms": round(1e3 * float(np.mean(waits)), 2),
        "own_work_ms": round(1e3 * work / steps, 2),
        "percentile_99_ms": round(1e3 * float(np.percentile(waits, 99)), 2),
        "share_percent": round(100 * sum(waits) / (sum(waits) + steps * step_seconds), 2),
    }


def stages(source: DatasetSplit, config: DataConfig, images: int = 100) -> dict[str, float]:
    """Milliseconds of one thread's time that each stage takes for an image, over the first images of the set."""
    seconds = dict.fromkeys(("read", "decode", "resize and pad", "masks", "whole example"), 0.0)

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        begin = time.thread_time()
        result = work()
        seconds[stage] += time.thread_time() - begin
        return result

    count = min(images, len(source))
    for index in range(count):
        record = timed("read", lambda index=index: source[index])
        image = timed("decode", lambda record=record: decode_record(record))
        size = resized_size(*image.shape[:2], max(config.short_edge), config.long_edge, config.size_rounding)
        padded, objects = padded_size(config, image.shape[0] > image.shape[1]), record.objects
        timed("resize and pad", lambda image=image, size=size, padded=padded: resize_and_pad(image, size, padded, config))
        for rle, box in zip(objects.rles[: config.max_objects], objects.boxes, strict=False):
            timed("masks", lambda rle=rle, box=box, record=record: crop_mask(decode_mask(rle, record.height, record.width), box, config.mask_size))
        random = np.random.default_rng(index)
        timed("whole example", lambda record=record, random=random: training_example(record, source.info, config, random))
    milliseconds = {stage: 1e3 * value / count for stage, value in seconds.items()}
    whole = milliseconds.pop("whole example")
    milliseconds["everything else"] = whole - sum(milliseconds[stage] for stage in ("decode", "resize and pad", "masks"))
    return {stage: round(value, 2) for stage, value in milliseconds.items()}


def measure(options: Options) -> dict[str, Any]:
    """All figures of a run."""
    config = replace(presets.get(options.experiment).data, dataset=options.dataset)
    config = replace(config, threads=options.threads or config.threads)
    source, load = open_split(config, config.train_split), os.getloadavg()[0]

    def batches(steps):
        return training_batches(source, config, steps=steps, images_per_process=options.images_per_step, seed=0)

    at_full_speed = run_through(batches(options.warmup + options.steps + 1), options.warmup, options.steps, options.images_per_step)
    return {
        "command": command_line(f"{PROGRAM} --dataset DIR", options, leave=("dataset",)),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version(), "load_before": round(load, 2)},
        "data": {
            "set": source.info.name,
            "images": len(source),
            "median_size": np.median(source.sizes, axis=0).astype(int).tolist(),
            "objects_per_image": round(float(np.mean([len(record.objects.ids) for record in source])), 1),
            "padded_size": list(padded_size(config, portrait=False)),
        },
        "threads": config.threads,
        **{name: getattr(options, name) for name in ("experiment", "steps", "warmup", "images_per_step")},
        **at_full_speed,
        "stages_ms": stages(source, config),
        "waiting": wait_for(batches(options.waiting_steps + 1), options.waiting_steps, options.step_seconds),
    }


# ---- the page


def markdown(result: dict[str, Any], picture: str) -> str:
    """The page of a result; ``picture`` is the plot's name."""
    data, machine, waiting, memory = (result[name] for name in ("data", "machine", "waiting", "memory"))
    height, width = data["median_size"]
    per_core = result["images_per_second_per_core"]
    stages = "\n".join(f"| {stage} | {milliseconds:.2f} |" for stage, milliseconds in result["stages_ms"].items())
    demands = "\n".join(
        f"| {demand:g}{' (Detectron2 on a V100, as published)' if demand == PUBLISHED else ''} | {demand / per_core:.2f} | {8 * demand / per_core:.1f} |"
        for demand in DEMANDS
    )
    return f"""# The data pipeline, measured

Made by `{result["command"]}` on {machine["processor"]}, {machine["cores"]} cores, with a load average of {machine["load_before"]:.2f} from other work when it began.

The training batches of `{result["experiment"]}`: {data["images"]} images of {data["set"]} (median {width} x {height} pixels, {data["objects_per_image"]:g} objects), resized
and padded to {data["padded_size"][1]} x {data["padded_size"][0]}, {result["images_per_step"]} images a step, {result["threads"]} threads.

| | |
|---|---|
| images a second, {result["busy_cores"]:.2f} cores busy | {result["images_per_second"]:.1f} |
| images a second, for each busy core | {per_core:.1f} |
| resident memory, after {result["warmup"]} steps and {result["steps"]:,} later | {memory["megabytes"][0][1]:.0f} and {memory["megabytes"][-1][1]:.0f} MB |
| growth, from the median of the first to that of the last tenth of these steps | {memory["growth_percent"]:.1f}% |

![Resident memory over the steps]({picture})

## Where the time goes

Milliseconds of one thread for an image, alone:

| | |
|---|---|
{stages}

## Enough for which device

Cores that must be busy for one device, and for the eight of a host. A pipeline that is only just fast enough makes the devices wait now and then: have twice as many.

| images a second that a device trains | cores for one | cores for eight |
|---|---|---|
{demands}

With a device that computes for {waiting["step_seconds"]:g} s, a loop of {waiting["steps"]} steps waited {waiting["mean_ms"]:.1f} ms a step for its batch
({waiting["percentile_99_ms"]:.1f} ms at the 99th percentile), {waiting["share_percent"]:.1f}% of its time; {waiting["own_work_ms"]:.1f} ms of it went into stacking the images. A real loop
hands a step to the device and asks for the next batch while that computes, so this wait is hidden, too.
"""


def plot(result: dict[str, Any], path: Path) -> None:
    """Save resident memory over the steps as a PNG."""
    steps, megabytes = np.array(result["memory"]["megabytes"]).T
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot(steps, megabytes, color="#0072b2", linewidth=1.5)
    axis.set(xlabel=f"step after {result['warmup']}", ylabel="resident memory, MB", ylim=(0, 1.15 * megabytes.max()), xlim=(0, steps[-1]))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


# ---- command line


def run(options: Options) -> list[Path]:
    """Measures, and writes figures, page and plot: the files. Raises InputError for options out of range."""
    check(options, steps=10 * EVERY, warmup=1, images_per_step=1, threads=0, step_seconds=0, waiting_steps=1)
    result = measure(options)
    stem, place = options.out.stem, options.out.parent
    files = options.out, place / f"{stem.upper()}.md", place / f"{stem}.png"
    with ExitStack() as stack:  # all files or none
        figures, page, picture = (stack.enter_context(replacing(file)) for file in files)
        write_json(figures, result)
        page.write_text(markdown(result, files[2].name))
        plot(result, picture)
    return list(files)


def main(arguments: list[str]) -> int:
    """The program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
