"""One process of benchmarks.scaling.measure: some training steps on its devices, and what they cost."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from flax.traverse_util import flatten_dict

from benchmarks.model._synthetic import make_step, standalone, synthetic_batch
from benchmarks.tpu._hlo import all_reduces
from mrcnn_jax import distributed, presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.sharding import Sharding

COMPILED = "/jax/core/compile/backend_compile_duration"


def make_batch(
    experiment: Experiment, objects: Sequence[int], portrait: bool = False, seed: int = 0
) -> Batch:
    """Returns this process's part of a global batch of noise images; image i has ``objects[i]`` objects."""
    experiment = replace(experiment, train=replace(experiment.train, images_per_device=len(objects)))
    batch = synthetic_batch(experiment, 1, objects, seed, portrait)
    images = len(objects) // jax.process_count()
    return jax.tree.map(lambda leaf: leaf[0, jax.process_index() * images :][:images], batch)


class Step:
    """The training step over all devices of all processes, with its state.

    Attributes:
        compiled: number of programs compiled, by padded size of the images.
    """

    def __init__(self, experiment: Experiment, parallel: str, images: int):
        per_device = images // jax.device_count()
        train = replace(experiment.train, parallel=parallel, images_per_device=per_device)
        self.function, make_state = make_step(replace(experiment, train=train))
        self.sharding, self.compiled, self._compilations = Sharding(parallel), Counter(), 0
        self.state = self.sharding.replicate(make_state())
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, _, **about):
        self._compilations += event == COMPILED

    def __call__(self, batch: Batch) -> float:
        """Makes a step; returns the loss."""
        placed = jax.block_until_ready(self.sharding.shard(batch))
        before = self._compilations
        self.state, metrics = self.function(self.state, placed)
        loss = float(metrics["loss"])
        self.compiled["x".join(map(str, batch.images.shape[1:3]))] += self._compilations - before
        return loss

    def params(self) -> dict[str, np.ndarray]:
        """Returns the parameters on this process's first device."""
        leaves = flatten_dict(self.state.params, sep=".").items()
        return {name: np.asarray(leaf.addressable_data(0)) for name, leaf in leaves}


def updates(step: Step, experiment: Experiment, images: int) -> tuple[dict[str, Any], list[float]]:
    """Makes three steps; returns the parameters before, after one and after three of them, and the losses."""
    slots, params, losses = experiment.data.max_objects, {"before": step.params()}, []
    for turn in (1, 2, 3):
        objects = [(3 * index + turn) % (slots + 1) for index in range(images)]
        losses.append(step(make_batch(experiment, objects, seed=turn)))
        params |= {str(turn): step.params()} if turn != 2 else {}
    return params, losses


def programs(step: Step, experiment: Experiment, images: int) -> dict[str, Any]:
    """Steps with both image sizes and no to all object slots filled; counts programs and all-reduces."""
    slots = experiment.data.max_objects
    for turn, portrait in enumerate((True, False, True, True, False)):
        step(make_batch(experiment, [[0, slots, turn][turn % 3]] * images, portrait, seed=10 + turn))
    batch = step.sharding.shard(make_batch(experiment, [1] * images))
    reduced = all_reduces(step.function.lower(step.state, batch).compile().as_text())
    size = sum(each.bytes for each in reduced)
    return {"compiled": step.compiled, "all_reduces": len(reduced), "bytes": size}


def speed(step: Step, experiment: Experiment, images: int, steps: int) -> dict[str, float]:
    """Returns milliseconds per image: wall time (median, minimum), and time of all cores of all processes."""
    batch = make_batch(experiment, [4] * images)
    for _ in range(2):
        step(batch)
    wall, busy = [], time.process_time()
    for _ in range(steps):
        begin = time.perf_counter()
        step(batch)
        wall.append(time.perf_counter() - begin)
    busy = (time.process_time() - busy) * jax.process_count() / steps
    values = {"median_ms": float(np.median(wall)), "least_ms": min(wall), "busy_ms": busy}
    return {name: round(1e3 * value / images, 2) for name, value in values.items()}


def main(settings: dict[str, Any]) -> None:
    """Measures; the primary process writes OUT.npz and OUT.json."""
    distributed.initialize(settings["coordinator"], settings["processes"], settings["process"])
    base, images = presets.get("demo"), settings["images"]
    sgd = {"optimizer": "sgd", "weight_decay": 0.0, "warmup_steps": 0, "learning_rate": 0.02}
    base = replace(base, train=replace(base.train, reference_batch=images, **sgd))
    experiment = standalone(tyro.cli(Experiment, default=base, args=settings["arguments"]))
    arrays, result = {}, {"devices": jax.device_count()}
    for parallel in ("pmap", "shard_map"):
        step = Step(experiment, parallel, images)
        arrays[parallel], losses = updates(step, experiment, images)
        result["parameters"], result[parallel] = sum(map(np.size, step.params().values())), {"losses": losses}
        if settings["programs"]:
            result[parallel] |= programs(step, experiment, images)
        if settings["steps"]:
            weak = settings["images_per_device"] * jax.device_count()
            step = step if weak == images else Step(experiment, parallel, weak)
            result[parallel]["speed"] = speed(step, experiment, weak, settings["steps"])
    if distributed.is_primary():
        out = Path(settings["out"])
        np.savez(out.with_suffix(".npz"), **flatten_dict(arrays, sep="/"))
        out.with_suffix(".json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
