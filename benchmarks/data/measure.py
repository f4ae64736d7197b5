"""python -m benchmarks.data.measure --dataset DIR: speed, memory and waits of the data pipeline.

Iterates over the training batches of a prepared data set with the settings of an experiment.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks._markdown import write_page
from benchmarks._program import RESULTS, check, command_line, processor, versions, write_files
from benchmarks.data._page import PUBLISHED, markdown, plot
from mrcnn_jax import presets
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import AUGMENTATIONS, DataConfig
from mrcnn_jax.data import transforms
from mrcnn_jax.data.augment.example import training_example
from mrcnn_jax.data.augment.mask_runs import MaskRuns
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.data.resize import resized_size

PROGRAM = "python -m benchmarks.data.measure"
RESULT = RESULTS / "loader.json"
MEMORY_INTERVAL = 10  # steps


@dataclass(frozen=True)
class Options:
    """Measure speed, memory and waits of the data pipeline."""

    dataset: str
    """Prepared data set (`mrcnn dataset`)."""
    experiment: str = "mask_rcnn_r50_fpn"
    """Experiment that gives image sizes, object slots and threads; `mrcnn train` lists them."""
    steps: int = 1000
    """Measured steps."""
    warmup: int = 100
    """Steps before the measurement."""
    images_per_step: int = 2
    """Images in a batch."""
    threads: int = 0
    """Loading threads; 0 takes the experiment's."""
    step_seconds: float = round(2 / PUBLISHED, 3)
    """Simulated time of a device step; by default that of two images on a V100 (Detectron2, published)."""
    waiting_steps: int = 200
    """Steps with the simulated device."""
    out: Path = RESULT
    """JSON file of the results; a page (NAME.md, in capitals) and a plot (NAME.png) are written beside it."""


def resident_megabytes() -> float:
    """Returns the resident memory of this process, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def measure_throughput(batches: Iterator, warmup: int, steps: int, images_per_step: int) -> dict[str, Any]:
    """Takes batches as fast as they come; measures images per second, processor time and resident memory."""
    memory = []
    for _ in range(warmup):
        next(batches)
    begin, busy = time.perf_counter(), time.process_time()
    for step in track(range(steps), description="batches", console=Console(stderr=True)):
        if step % MEMORY_INTERVAL == 0:
            memory.append((step, resident_megabytes()))
        next(batches)
    wall, busy = time.perf_counter() - begin, time.process_time() - busy
    memory.append((steps, resident_megabytes()))
    images = steps * images_per_step
    return {
        "images_per_second": round(images / wall, 1),
        "images_per_second_per_core": round(images / busy, 1),
        "busy_cores": round(busy / wall, 2),
        "memory": {"growth_percent": round(growth(memory), 2), "megabytes": memory},
    }


def growth(memory: list[tuple[int, float]]) -> float:
    """Returns by how many percent the median of the last tenth of samples exceeds that of the first tenth."""
    tenth = max(1, len(memory) // 10)
    _, megabytes = zip(*memory, strict=True)
    return float(100 * (np.median(megabytes[-tenth:]) / np.median(megabytes[:tenth]) - 1))


def measure_waits(batches: Iterator, steps: int, step_seconds: float) -> dict[str, float]:
    """Measures the waits of a loop for its batches, after the first, while a simulated device computes.

    ``own_work_ms``: processor time of the loop's own thread, which stacks images.
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


def measure_stages(source: DatasetSplit, config: DataConfig, images: int = 100) -> dict[str, float]:
    """Measures the milliseconds of one thread that each stage takes for an image."""
    seconds, count = Counter(), min(images, len(source))

    def timed(stage: str, function: Callable, *arguments: Any) -> Any:
        begin = time.thread_time()
        result = function(*arguments)
        seconds[stage] += time.thread_time() - begin
        return result

    for index in range(count):
        record = timed("read", source.__getitem__, index)
        image = timed("decode", transforms.decode_record, record)
        size = resized_size(*image.shape[:2], max(config.short_edge), config.long_edge)
        padded = transforms.padded_size(config, portrait=image.shape[0] > image.shape[1])
        timed("resize and pad", transforms.resize_and_pad, image, size, padded)
        for rle, box in zip(record.objects.rles[: config.max_objects], record.objects.boxes, strict=False):
            timed("masks", MaskRuns(rle, record.height, record.width).crop, box, config.mask_size)
        timed("all", training_example, record, source.info, config, np.random.default_rng(index))
    stages = {stage: seconds[stage] for stage in ("read", "decode", "resize and pad", "masks")}
    stages["everything else"] = seconds["all"] + seconds["read"] - sum(stages.values())
    return {stage: round(1e3 * value / count, 2) for stage, value in stages.items()}


def measure_augmentations(source: DatasetSplit, config: DataConfig, images: int = 100) -> dict[str, float]:
    """Measures the milliseconds of one thread for a training example, read and augmented, by preset."""
    milliseconds = {}
    for name, augment in AUGMENTATIONS.items():
        changed, begin = replace(config, augment=augment), time.thread_time()
        for index in range(images):
            training_example(
                source[index % len(source)], source.info, changed, np.random.default_rng(index),
                sample_other=lambda random, render: render(source[int(random.integers(len(source)))]),
            )  # fmt: skip
        milliseconds[name] = round(1e3 * (time.thread_time() - begin) / images, 2)
    return milliseconds


def measure(options: Options) -> dict[str, Any]:
    """Returns all results of a run."""
    config = replace(presets.get(options.experiment).data, dataset=options.dataset)
    config = replace(config, threads=options.threads or config.threads)
    source, load, images = open_split(config, config.train_split), os.getloadavg()[0], options.images_per_step

    def batches(steps: int) -> Iterator:
        return training_batches(source, config, steps=steps, images_per_process=images, seed=0)

    steps, warmup, waiting = options.steps, options.warmup, options.waiting_steps
    throughput = measure_throughput(batches(warmup + steps + 1), warmup, steps, images)
    return {
        "command": command_line(f"{PROGRAM} --dataset DIR", options, leave=("dataset",)),
        "machine": {
            "processor": processor(), "cores": os.cpu_count(), "load_before": round(load, 2), **versions(),
        },
        "data": {
            "set": source.info.name, "images": len(source),
            "median_size": np.median(source.sizes, axis=0).astype(int).tolist(),
            "objects_per_image": round(len(source.ground_truth()["annotations"]) / len(source), 1),
            "padded_size": list(transforms.padded_size(config, portrait=False)),
        },
        "threads": config.threads, "experiment": options.experiment,
        "steps": steps, "warmup": warmup, "images_per_step": images,
        **throughput,
        "stages_ms": measure_stages(source, config),
        "augmentations_ms": measure_augmentations(source, config),
        "waiting": measure_waits(batches(waiting + 1), waiting, options.step_seconds),
    }  # fmt: skip


def run(options: Options) -> list[Path]:
    """Measures, and writes results, page and plot; returns their paths."""
    minimum = {"steps": 10 * MEMORY_INTERVAL, "warmup": 1, "images_per_step": 1, "threads": 0}
    check(options, **minimum, step_seconds=0, waiting_steps=1)
    result, out = measure(options), options.out
    write_json(out, result)
    page, text = out.with_name(f"{out.stem.upper()}.md"), markdown(result, f"{out.stem}.png")
    return [out, *write_page(page, text, **{out.stem: plot(result)})]


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns the exit status."""
    return write_files(PROGRAM, Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
