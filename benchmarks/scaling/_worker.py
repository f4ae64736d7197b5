"""One process of a measurement of benchmarks.scaling.measure: a few train steps on its devices, with what they gave, took and compiled to."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks.model.train_step import synthetic_batch, standalone
from benchmarks.tpu._hlo import all_reduces
from mrcnn_jax import distributed, presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.sharding import Sharding
from mrcnn_jax.training.step import create_state, make_train_step


def made_up(experiment: Experiment, objects: Sequence[int], portrait: bool = False, seed: int = 0) -> Batch:
    """Noise images, ``objects[i]`` objects in image i, [images, ...]."""
    one = replace(experiment, train=replace(experiment.train, images_per_device=len(objects), accumulate=1))
    batch = jax.tree.map(lambda leaf: leaf[0], synthetic_batch(one, 1, experiment.data.max_objects, seed))
    batch = batch.replace(valid=np.arange(experiment.data.max_objects) < np.asarray(objects)[:, None])
    if portrait:
        batch = batch.replace(images=batch.images.swapaxes(1, 2), sizes=batch.sizes[:, ::-1], boxes=batch.boxes[..., [1, 0, 3, 2]])
    return batch


def mine(batch: Batch) -> Batch:
    """The part of a global batch that lies on this process's devices."""
    images = len(batch.images) // jax.process_count()
    return jax.tree.map(lambda leaf: leaf[jax.process_index() * images :][:images], batch)


class Step:
    """The train step over all devices of all processes, with its state.

    ``compiled`` counts what the backend compiled in each call, by the padded size of its images.
    """

    def __init__(self, experiment: Experiment, variables: dict[str, Any], parallel: str, images: int):
        train = replace(experiment.train, parallel=parallel, images_per_device=images // jax.device_count())
        experiment = replace(experiment, train=train)
        optimizer = make_optimizer(train, experiment.model, images)
        self.sharding = Sharding(parallel)
        self.state = self.sharding.replicate(jax.tree.map(np.asarray, create_state(variables, optimizer)))
        self.call = make_train_step(MaskRCNN(experiment.model), optimizer, experiment)
        self.events, self.compiled = [], {}
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, _, **about: self.events.append(about) if event == "/jax/core/compile/backend_compile_duration" else None
        )

    def __call__(self, batch: Batch) -> dict[str, float]:
        placed = jax.block_until_ready(self.sharding.shard(mine(batch)))
        self.events.clear()
        self.state, metrics = self.call(self.state, placed)
        metrics = {name: float(value) for name, value in metrics.items()}
        size = "x".join(map(str, batch.images.shape[1:3]))
        self.compiled[size] = self.compiled.get(size, 0) + len(self.events)
        return metrics

    def params(self) -> dict[str, np.ndarray]:
        """As they are on this process's first device."""
        return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf.addressable_data(0)).reshape(leaf.shape)
                for path, leaf in jax.tree_util.tree_leaves_with_path(self.state.params)}  # fmt: skip


def updates(step: Step, experiment: Experiment, images: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Three steps on one global batch after the other: the parameters before, after one and after three of them; and the losses."""
    slots = experiment.data.max_objects
    arrays, losses = {f"before/{name}": array for name, array in step.params().items()}, []
    for turn in (1, 2, 3):
        objects = [(3 * index + turn) % (slots + 1) for index in range(images)]
        losses.append(step(made_up(experiment, objects, seed=turn))["loss"])
        if turn in (1, 3):
            arrays |= {f"{turn}/{name}": array for name, array in step.params().items()}
    return arrays, losses


def programs(step: Step, experiment: Experiment, images: int) -> dict[str, Any]:
    """What travels between devices in a step; and what was compiled, after more steps over images of both sizes with none to all slots filled."""
    slots = experiment.data.max_objects
    for turn, portrait in enumerate((True, False, True, True, False)):
        step(made_up(experiment, [[0, slots, turn][turn % 3]] * images, portrait, seed=10 + turn))
    batch = step.sharding.shard(mine(made_up(experiment, [1] * images)))
    reduced = all_reduces(step.call.lower(step.state, batch).compile().as_text())
    return {"compiled": step.compiled, "all_reduces": len(reduced), "bytes": sum(one.bytes for one in reduced)}


def speed(step: Step, experiment: Experiment, images: int, steps: int) -> dict[str, float]:
    """Of a step, in milliseconds for each image: by the clock (median and least), and of all cores of all processes together."""
    batch = made_up(experiment, [4] * images)
    for _ in range(2):
        step(batch)
    clock, busy = [], time.process_time()
    for _ in range(steps):
        begin = time.perf_counter()
        step(batch)
        clock.append(time.perf_counter() - begin)
    busy = (time.process_time() - busy) * jax.process_count()
    scale = 1e3 / images
    return {
        "median_ms": round(scale * float(np.median(clock)), 2),
        "least_ms": round(scale * min(clock), 2),
        "busy_ms": round(scale * busy / steps, 2),
    }


def main(settings: dict[str, Any]) -> None:
    """Measures, and writes OUT.npz and OUT.json; of several processes the first does."""
    distributed.initialize(settings["coordinator"], settings["processes"], settings["process"])
    base, images = presets.get("demo"), settings["images"]
    base = replace(base, train=replace(base.train, optimizer="sgd", weight_decay=0.0, warmup_steps=0, learning_rate=0.02, reference_batch=images))
    experiment = standalone(tyro.cli(Experiment, default=base, args=settings["arguments"]))
    variables = init_variables(MaskRCNN(experiment.model), jax.random.key(0))
    sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
    arrays, figures = {}, {"processes": jax.process_count(), "devices": jax.device_count(), "parameters": sum(sizes)}
    for parallel in ("pmap", "shard_map"):
        step = Step(experiment, variables, parallel, images)
        found, losses = updates(step, experiment, images)
        arrays |= {f"{parallel}/{name}": array for name, array in found.items()}
        figures[parallel] = {"losses": losses}
        if settings["programs"]:
            figures[parallel] |= programs(step, experiment, images)
        if settings["steps"]:
            weak = settings["images_per_device"] * jax.device_count()
            step = step if weak == images else Step(experiment, variables, parallel, weak)
            figures[parallel]["speed"] = speed(step, experiment, weak, settings["steps"])
    if distributed.is_primary():
        out = Path(settings["out"])
        np.savez(out.with_suffix(".npz"), **arrays)
        out.with_suffix(".json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
