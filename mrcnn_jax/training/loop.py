"""The whole run, top to bottom: data, model, devices, checkpoint, the loop, the final evaluation."""

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from mrcnn_jax import scoring
from mrcnn_jax.checkpoint import Checkpoints
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.library import open_split
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.data.records import RecordSource
from mrcnn_jax.detector import Detector, read_weights
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation import metrics_table, write_metrics
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.models.norm import DEVICES
from mrcnn_jax.training.beginning import adopt_proposer, adopt_weights, check_backbone, fit_to_dataset, see_alike
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule
from mrcnn_jax.training.step import TrainState, create_state, make_train_step
from mrcnn_jax.visualize import plot_curves, save_image


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite. The parameters were left as they were before that step."""


def train(experiment: Experiment, directory: Path, console: Console | None = None) -> dict[str, Any]:
    """Trains the experiment in a run directory, resuming what is there, evaluates it and returns the metrics.

    The directory gets: checkpoints/, experiment.json, history.jsonl, curves.png, tensorboard/, metrics.json, predictions.png.
    """
    console = console or Console()
    directory = Path(directory)

    # ---- data ----
    config, training = experiment.train, open_split(experiment.data, experiment.data.train_split)
    validation = open_split(experiment.data, experiment.data.validation_split)
    experiment = fit_to_dataset(experiment, training)
    devices, processes = jax.local_device_count(), jax.process_count()
    images_per_process = devices * config.images_per_device
    images_per_step = images_per_process * processes

    # ---- checkpoint ----
    checkpoints, metrics_file = Checkpoints(directory / "checkpoints", config.keep_checkpoints), directory / "metrics.json"
    start, images_seen, weights = checkpoints.latest or 0, 0, None
    if checkpoints.latest == 0:
        raise InputError(f"{directory} holds imported weights: give --train.weights-from {directory} and another --directory")
    if start:
        saved, _, images_seen = checkpoints.about(start)
        if config.weights_from:
            experiment = replace(experiment, model=see_alike(experiment.model, saved.model))
        _check_same(saved, experiment, directory)
    elif config.weights_from:
        weights = read_weights(config.weights_from)
        check_backbone(experiment.model, weights.experiment.model, config.weights_from)
        experiment = replace(experiment, model=see_alike(experiment.model, weights.experiment.model))
    if start >= config.steps and metrics_file.exists():
        console.print(f"{directory} is finished: {start:,} steps. Its metrics are in {metrics_file}; for more, raise --train.steps.", highlight=False)
        return json.loads(metrics_file.read_text())
    metrics_file.unlink(missing_ok=True)  # of a shorter run that now goes on

    # ---- model and optimiser ----
    model = MaskRCNN(experiment.model, jnp.dtype(config.dtype))
    optimizer, schedule = make_optimizer(config, experiment.model, images_per_step), make_schedule(config, images_per_step)
    variables = initialise(model, jax.random.key(config.seed))
    if weights:
        variables, at_random, left = adopt_weights(variables, weights, experiment.model, training.info, config.weights_from)
    if config.rpn_from and not start:
        variables = adopt_proposer(variables, experiment)
    state = create_state(variables, optimizer)
    console.print(_describe(experiment, state, images_per_step, len(training), len(validation)), highlight=False)
    if start:
        state = checkpoints.restore(start, state)
        console.print(f"Resumed {directory} at step {start:,} of {config.steps:,}.", highlight=False)
    elif weights:
        console.print(f"Starts from {config.weights_from}. At random: {', '.join(at_random) or 'nothing'}.", highlight=False)
        if left:
            console.print(f"It also has {', '.join(left)}, for which this model has no place.", highlight=False)
    elif experiment.model.backbone.norm == "frozen":
        console.print("Warning: the backbone starts from random weights and its batch norm is frozen, so it will hardly learn; "
                      "model.backbone.norm group or batch trains from scratch.", style="yellow", highlight=False)  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "experiment.json").write_text(json.dumps(to_dict(experiment), indent=1) + "\n")
    history = History(directory, start)

    # ---- devices: state once for all, batches split by the leading axis ----
    state = jax.device_put(state, NamedSharding(Mesh(jax.devices(), (DEVICES,)), PartitionSpec()))
    train_step = make_train_step(model, optimizer, experiment)
    position = images_seen // images_per_step  # the step itself, unless the run began with another number of devices
    batches = training_batches(
        training, experiment.data, start=position, steps=position + config.steps - start, seed=config.seed,
        images_per_process=images_per_process, process=jax.process_index(), processes=processes,
    )  # fmt: skip

    def detector() -> Detector:
        variables = {"params": state.params, **state.model_state}
        return Detector(experiment, training.info, variables)

    # ---- the loop ----
    recent: deque[tuple[int, list[int]]] = deque(maxlen=config.log_every + 1)
    with _progress(console) as bar:
        task = bar.add_task("training", total=config.steps, completed=start, terms="compiling")
        clock, logged = time.perf_counter(), start
        for step in range(start, config.steps):
            batch, info = next(batches)
            recent.append((step, info.image_ids.tolist()))
            batch = jax.tree.map(lambda leaf: leaf.reshape(devices, config.images_per_device, *leaf.shape[1:]), batch)
            state, metrics = train_step(state, batch)
            done = step + 1

            if done % config.log_every == 0 or done == config.steps or done == start + 1:
                scalars = {name: float(value) for name, value in metrics.items()}
                _halt_if_diverged(state, recent, directory, checkpoints)
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                scalars |= {"learning_rate": float(schedule(step)), "images_per_second": (done - logged) * images_per_step / seconds}
                logged = done
                history.add(done, scalars)
                terms = " ".join(f"{name.removeprefix('loss_')} {scalars[name]:.3f}" for name in scalars if name.startswith("loss"))
                bar.update(task, completed=done, terms=f"{terms} | {scalars['images_per_second']:.1f} images/s")
                if not console.is_terminal and (done % (10 * config.log_every) == 0 or done == start + 1):
                    console.print(f"step {done:>7,}/{config.steps:,} {terms} | {scalars['images_per_second']:.1f} images/s", highlight=False)

            last = done == config.steps
            if done % config.checkpoint_every == 0 or last:
                _halt_if_diverged(state, recent, directory, checkpoints)
                checkpoints.save(done, state, images_seen + (done - start) * images_per_step, experiment, training.info)
            if config.evaluate_every and done % config.evaluate_every == 0 and not last:
                with _evaluating(bar, len(validation)) as progress:
                    metrics, results = scoring.evaluate(detector(), validation, progress)
                history.add_evaluation(done, metrics)
                history.picture(done, _sheet(experiment, results, validation))
                console.print(f"step {done:,}: {_in_one_line(metrics)}", highlight=False)
                clock = time.perf_counter()

        # ---- the end ----
        with _evaluating(bar, len(validation)) as progress:
            metrics, results = scoring.evaluate(detector(), validation, progress)
    checkpoints.wait()
    checkpoints.close()
    history.add_evaluation(config.steps, metrics)
    sheet = _sheet(experiment, results, validation)
    history.picture(config.steps, sheet)
    save_image(directory / "predictions.png", sheet)
    history.plot()
    history.close()
    write_metrics(metrics_file, metrics)
    console.print(metrics_table(metrics, title=f"{experiment.name}: {len(validation)} images"))
    console.print(f"Metrics, curves and pictures are in {directory}.", highlight=False)
    return metrics


class History:
    """What was measured on the way, in history.jsonl and for TensorBoard; steps beyond the one resumed from are forgotten."""

    def __init__(self, directory: Path, start: int):
        self.directory, self.file = directory, directory / "history.jsonl"
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        self.lines = [line for line in lines if line["step"] <= start]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        self.writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start if start else None)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        self.lines.append({"step": step, **scalars})
        with self.file.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(name, value, step)

    def add_evaluation(self, step: int, metrics: dict[str, Any]) -> None:
        self.add(step, {f"{kind}/{name}": figures[name] for kind, figures in metrics.items() for name in _headlines(figures)})
        self.plot()

    def picture(self, step: int, picture: np.ndarray) -> None:
        self.writer.add_image("predictions", picture, step, dataformats="HWC")

    def plot(self) -> None:
        evaluations = [line for line in self.lines if any("/" in name for name in line)]
        plot_curves([line for line in self.lines if "loss" in line], self.directory / "curves.png", evaluations)

    def close(self) -> None:
        self.writer.close()


def _check_same(saved: Experiment, experiment: Experiment, directory: Path) -> None:
    """Model and data of a resumed run must be what they were; steps, logging and evaluation may change."""
    before, now = to_dict(saved), to_dict(experiment)
    changed = [f"{part}.{name}" for part in ("model", "data") for name in now[part] if before[part][name] != now[part][name]]
    changed = [name for name in changed if name != "data.threads"]
    changed += ["train.seed"] if saved.train.seed != experiment.train.seed else []
    if changed:
        raise InputError(f"{directory} holds another run ({', '.join(changed)} differ): choose another --directory, or give the same settings")


def _describe(experiment: Experiment, state: TrainState, images_per_step: int, training: int, validation: int) -> str:
    config = experiment.train
    device, count = jax.devices()[0], jax.device_count()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    rate = config.learning_rate * images_per_step / config.reference_batch
    return (
        f"{experiment.name}: {parameters / 1e6:.1f} M parameters, {experiment.model.num_classes} classes, {training:,} training and "
        f"{validation:,} validation images\n"
        f"{count} x {device.device_kind} ({device.platform}), {jax.process_count()} process(es), {config.dtype}\n"
        f"Batch {images_per_step} = {count} x {config.images_per_device} images, so learning rate {rate:g} "
        f"({config.learning_rate:g} for {config.reference_batch}); {config.steps:,} steps are {config.steps * images_per_step / training:.1f} epochs"
    )


def _halt_if_diverged(state: TrainState, recent: deque, directory: Path, checkpoints: Checkpoints) -> None:
    failed = int(state.failed_at)
    if failed < 0:
        return
    checkpoints.wait()  # the last one may still be on its way to disk
    images = dict(recent).get(failed, [])
    raise TrainingDiverged(
        f"the loss or its gradient is not finite at step {failed:,}, with the images of id {', '.join(map(str, images))}; "
        f"nothing was learned from it. Look at these images, lower train.learning_rate or set train.clip_norm; {directory} resumes from its last checkpoint"
    )


def _sheet(experiment: Experiment, results: list[dict[str, Any]], validation: RecordSource) -> np.ndarray:
    return scoring.prediction_sheet(results, validation, experiment.evaluation.pictures, experiment.evaluation.picture_score)


def _headlines(figures: dict[str, Any]) -> tuple[str, ...]:
    """The figures of a kind that are watched on the way; proposals have no precision."""
    return ("AP", "AP50", "AP75") if "AP" in figures else ("AR100", "AR1000")


def _in_one_line(metrics: dict[str, Any]) -> str:
    """The first figure of each kind."""
    first = ((kind, _headlines(figures)[0], figures) for kind, figures in metrics.items())
    return ", ".join(f"{kind} {name} " + ("undefined" if figures[name] is None else f"{figures[name]:.1f}") for kind, name, figures in first)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[terms]}"))  # fmt: skip
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextmanager
def _evaluating(bar: Progress, images: int) -> Iterator[Any]:
    task = bar.add_task("evaluating", total=images, terms="")
    yield lambda done: bar.advance(task, done)
    bar.remove_task(task)
