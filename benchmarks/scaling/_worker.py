"""One process of benchmarks.scaling.measure: some training steps on its devices, and what they cost."""

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

from benchmarks.model.train_step import standalone, synthetic_batch
from benchmarks.tpu._hlo import all_reduces
from mrcnn_jax import distributed, presets
from mrcnn_jax.config import Experiment
from mrcnn_jax.models.mask_rcnn import MaskRCNN, init_variables
from mrcnn_jax.structures import Batch
from mrcnn_jax.training.optimizer import make_optimizer
from mrcnn_jax.training.sharding import Sharding
from mrcnn_jax.training.step import create_state, make_train_step

COMPILED = "/jax/core/compile/backend_compile_duration"


def make_batch(
    experiment: Experiment, objects: Sequence[int], portrait: bool = False, seed: int = 0
) -> Batch:
    """Returns this process's part of a global batch of noise images; image i has ``objects[i]`` objects."""
    train = replace(experiment.train, images_per_device=len(objects), accumulate=1)
    slots = experiment.data.max_objects
    batch = synthetic_batch(replace(experiment, train=train), 1, slots, seed)
    batch = jax.tree.map(lambda leaf: leaf[0], batch)
    batch = batch.replace(valid=np.arange(slots) < np.asarray(objects)[:, None])
    if portrait:
        boxes = batch.boxes[..., [1, 0, 3, 2]]
        batch = batch.replace(images=batch.images.swapaxes(1, 2), sizes=batch.sizes[:, ::-1], boxes=boxes)
    images = len(objects) // jax.process_count()
    return jax.tree.map(lambda leaf: leaf[jax.process_index() * images :][:images], batch)


class Step:
    """The training step over all devices of all processes, with its state.

    Attributes:
        compiled: number of programs compiled, by padded size of the images.
    """

    def __init__(self, experiment: Experiment, variables: dict[str, Any], parallel: str, images: int):
        per_device = images // jax.device_count()
        train = replace(experiment.train, parallel=parallel, images_per_device=per_device)
        optimizer = make_optimizer(train, experiment.model, images)
        self.sharding, self.compiled, self._compilations = Sharding(parallel), {}, 0
        self.state = self.sharding.replicate(create_state(variables, optimizer))
        experiment = replace(experiment, train=train)
        self.function = make_train_step(MaskRCNN(experiment.model), optimizer, experiment)
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, _, **about):
        self._compilations += event == COMPILED

    def __call__(self, batch: Batch) -> dict[str, float]:
        placed = jax.block_until_ready(self.sharding.shard(batch))
        before = self._compilations
        self.state, metrics = self.function(self.state, placed)
        metrics = {name: float(value) for name, value in metrics.items()}
        size = "x".join(map(str, batch.images.shape[1:3]))
        self.compiled[size] = self.compiled.get(size, 0) + self._compilations - before
        return metrics

    def params(self) -> dict[str, np.ndarray]:
        """Returns the parameters on this process's first device."""
        leaves = jax.tree_util.tree_leaves_with_path(self.state.params)
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf.addressable_data(0))
            for path, leaf in leaves
        }


def updates(step: Step, experiment: Experiment, images: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Makes three steps; returns the parameters before, after one and after three of them, and the losses."""
    slots = experiment.data.max_objects
    arrays, losses = {f"before/{name}": array for name, array in step.params().items()}, []
    for turn in (1, 2, 3):
        objects = [(3 * index + turn) % (slots + 1) for index in range(images)]
        losses.append(step(make_batch(experiment, objects, seed=turn))["loss"])
        if turn in (1, 3):
            arrays |= {f"{turn}/{name}": array for name, array in step.params().items()}
    return arrays, losses


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
    variables = init_variables(MaskRCNN(experiment.model), jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    arrays, result = {}, {"devices": jax.device_count(), "parameters": parameters}
    for parallel in ("pmap", "shard_map"):
        step = Step(experiment, variables, parallel, images)
        found, losses = updates(step, experiment, images)
        arrays |= {f"{parallel}/{name}": array for name, array in found.items()}
        result[parallel] = {"losses": losses}
        if settings["programs"]:
            result[parallel] |= programs(step, experiment, images)
        if settings["steps"]:
            weak = settings["images_per_device"] * jax.device_count()
            step = step if weak == images else Step(experiment, variables, parallel, weak)
            result[parallel]["speed"] = speed(step, experiment, weak, settings["steps"])
    if distributed.is_primary():
        out = Path(settings["out"])
        np.savez(out.with_suffix(".npz"), **arrays)
        out.with_suffix(".json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
