"""The whole run, top to bottom: data, model, devices, checkpoint, the loop, the final evaluation."""

import json
import os
import platform
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_json, write_text
from mrcnn_jax.checkpoint import Checkpoints, Saved, run_directory
from mrcnn_jax.config import Experiment, to_dict
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.pipeline import UnreadableImages, training_batches
from mrcnn_jax.errors import HostLostError, InputError, Interrupted, TrainingError
from mrcnn_jax.evaluation.coco import metrics_table
from mrcnn_jax.inference import evaluate as scoring
from mrcnn_jax.inference.detector import Detector, read_weights
from mrcnn_jax.models.mask_rcnn import MaskRCNN, initialise
from mrcnn_jax.training.logging import MetricLogger, headlines
from mrcnn_jax.training.optimizer import make_optimizer, make_schedule
from mrcnn_jax.training.preemption import PreemptionHandler, Watchdog
from mrcnn_jax.training.sharding import Sharding, prefetch
from mrcnn_jax.training.step import TrainState, create_state, make_train_step
from mrcnn_jax.training.warm_start import (
    check_backbone,
    load_frozen_rpn,
    load_pretrained,
    match_preprocessing,
    resolve_dataset_fields,
)
from mrcnn_jax.visualize.draw import save_image


def train(experiment: Experiment, directory: str | os.PathLike, console: Console | None = None) -> dict[str, Any]:
    """Trains the experiment in a run directory, resuming what is there, evaluates it and returns the metrics.

    The directory, which may be at a gs:// address, gets: checkpoints/, experiment.json, history.jsonl, curves.png, tensorboard/, metrics.json, predictions.png.
    Several processes (``distributed.initialize``) each call this with the same arguments and a directory that all of them see; the first writes all but the checkpoints.

    Raises:
        InputError: what is asked for does not go together.
        RunFailed: the run diverges, or its files cannot be written.
        StartAgain: it was asked to stop (SIGTERM), or lost one of its processes; the same call goes on.
    """
    console = (console or Console()) if distributed.is_primary() else Console(quiet=True)
    try:
        with ExitStack() as leaving:
            return _train(experiment, run_directory(directory), console, leaving)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" in reason:
            raise TrainingError(f"the memory of a device does not suffice: lower train.images_per_device, raise train.accumulate or set train.remat ({reason})") from error
        if jax.process_count() > 1:
            raise HostLostError(f"another process, or the way to it, is lost ({reason}): give the same command in all of them again") from error
        raise


def _train(experiment: Experiment, directory: epath.Path, console: Console, leaving: ExitStack) -> dict[str, Any]:
    stop, watchdog = leaving.enter_context(PreemptionHandler()), leaving.enter_context(Watchdog(experiment.train.stall_seconds))

    # ---- data ----
    config, training = experiment.train, open_split(experiment.data, experiment.data.train_split)
    validation = open_split(experiment.data, experiment.data.validation_split)
    experiment = resolve_dataset_fields(experiment, training)
    images_per_process = jax.local_device_count() * config.images_per_device
    images_per_step = images_per_process * jax.process_count()

    # ---- checkpoint ----
    metrics_file = directory / "metrics.json"
    checkpoints = leaving.enter_context(Checkpoints(directory / "checkpoints", config.keep_checkpoints))
    saved = checkpoints.newest(lambda warning: console.print(f"Warning: {warning}.", style="yellow", highlight=False, soft_wrap=True))
    start, images_seen, weights = (saved.step, saved.images_seen, None) if saved else (0, 0, None)
    if saved and start == 0:
        raise InputError(f"{directory} holds imported weights: give --train.init-from {directory} and another --directory")
    if saved:
        if config.init_from:
            experiment = replace(experiment, model=match_preprocessing(experiment.model, saved.experiment.model))
        _check_same(saved, experiment, directory)
    elif config.init_from:
        weights = read_weights(config.init_from)
        check_backbone(experiment.model, weights.experiment.model, config.init_from)
        experiment = replace(experiment, model=match_preprocessing(experiment.model, weights.experiment.model))
    if start >= config.steps and metrics_file.exists():
        console.print(f"{directory} is finished: {start:,} steps. Its metrics are in {metrics_file}; for more, raise --train.steps.", highlight=False)
        return json.loads(metrics_file.read_text())

    # ---- model and optimiser ----
    _keep_compiled_programs(config.compilation_cache)
    model = MaskRCNN(experiment.model, jnp.dtype(config.dtype), config.remat)
    optimizer, schedule = make_optimizer(config, experiment.model, images_per_step), make_schedule(config, images_per_step)
    variables = initialise(model, jax.random.key(config.seed))
    if weights:
        variables, at_random, left = load_pretrained(variables, weights, experiment.model, training.info, config.init_from)
    if experiment.model.rpn.proposals_from and not start:
        variables = load_frozen_rpn(variables, experiment)
    state = create_state(variables, optimizer)
    console.print(_describe(experiment, state, images_per_step, len(training), len(validation)), highlight=False)
    if saved:
        state = saved.state(state)
        console.print(f"Resumed {directory} at step {start:,} of {config.steps:,}.", highlight=False)
    elif weights:
        console.print(f"Starts from {config.init_from}. At random: {', '.join(at_random) or 'nothing'}.", highlight=False)
        if left:
            console.print(f"It also has {', '.join(left)}, for which this model has no place.", highlight=False)
    elif experiment.model.backbone.norm == "frozen":
        console.print("Warning: the backbone starts from random weights and its batch norm is frozen, so it will hardly learn; "
                      "model.backbone.norm group or batch trains from scratch.", style="yellow", highlight=False)  # fmt: skip
    _announce(experiment, directory, metrics_file)
    history = MetricLogger(directory, start, distributed.is_primary())

    # ---- devices ----
    placement = Sharding(config.parallel)
    state = placement.state(state)
    train_step = make_train_step(model, optimizer, experiment)
    unreadable = UnreadableImages(experiment.data.max_unreadable_images)
    position = images_seen // images_per_step  # the step itself, unless the run began with another number of devices
    loaded = training_batches(
        training, experiment.data, start=position, steps=position + config.steps - start, seed=config.seed, masks="masks" in experiment.model.tasks,
        images_per_process=images_per_process, process=jax.process_index(), processes=jax.process_count(), skipped=unreadable,
        conventions=experiment.model.conventions,
    )  # fmt: skip
    batches = prefetch(loaded, lambda batch: (placement.batch(batch[0]), batch[1].image_ids.tolist()))

    def save(step: int) -> None:
        watchdog.at(f"saving step {step:,}")
        history.flush()
        checkpoints.save(step, placement.shared(state), images_seen + (step - start) * images_per_step, experiment, training.info)

    def evaluate(bar: Progress) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        detector = Detector(experiment, training.info, placement.own({"params": state.params, **state.model_state}))
        with _evaluating(bar, len(validation)) as progress:

            def moved(images: int) -> None:
                progress(images)
                watchdog.at("evaluating")
                stop.check()

            moved(0)
            return scoring.evaluate(detector, validation, moved)

    def due(step: int) -> bool:
        return bool(config.evaluate_every and step and step % config.evaluate_every == 0 and step < config.steps)

    def evaluate_on_the_way(bar: Progress, step: int) -> None:
        metrics, results = evaluate(bar)
        history.add_evaluation(step, metrics)
        if distributed.is_primary():
            history.picture(step, _sheet(experiment, results, validation))
        console.print(f"step {step:,}: {_in_one_line(metrics)}", highlight=False)

    # ---- the loop ----
    unseen: deque[tuple[int, list[int], Any]] = deque()  # step, image ids and "failed" of the steps since the host looked
    with _progress(console) as bar:
        task = bar.add_task("training", total=config.steps, completed=start, terms="compiling")
        if due(start) and not any(distributed.all_gather_object(history.has_evaluation(start))):
            evaluate_on_the_way(bar, start)  # which a run that was cut short still owes
        clock, logged, waited = time.perf_counter(), start, 0.0
        for step in range(start, config.steps):
            watchdog.at(f"waiting for the images of step {step:,}")
            asked = time.perf_counter()
            batch, image_ids = next(batches)
            waited += time.perf_counter() - asked
            watchdog.at(f"computing step {step:,}")
            state, metrics = train_step(state, batch)
            unseen.append((step, image_ids, metrics.pop("failed")))
            done = step + 1
            last = done == config.steps

            if done % config.log_every == 0 or last or done == start + 1:
                asked = time.perf_counter()
                scalars = {name: float(value) for name, value in metrics.items()}
                idle, seconds, clock = time.perf_counter() - asked, time.perf_counter() - clock, time.perf_counter()
                _look_at_failures(state, unseen, config.max_skipped_steps, directory, console)
                for message in unreadable.news():  # each process reads its own images
                    where = console if distributed.is_primary() else Console(stderr=True)
                    where.print(f"Warning: {message}; another image took its place.", style="yellow", highlight=False, soft_wrap=True)
                scalars |= {"learning_rate": float(schedule(step)), "images_per_second": (done - logged) * images_per_step / seconds,
                            "waited_for_images": waited / seconds, "waited_for_devices": idle / seconds}  # fmt: skip
                logged, waited = done, 0.0
                history.add(done, scalars)
                terms = " ".join(f"{name.removeprefix('loss_')} {scalars[name]:.3f}" for name in scalars if name.startswith("loss"))
                bar.update(task, completed=done, terms=f"{terms} | {scalars['images_per_second']:.1f} images/s")
                if not console.is_terminal and (done % (10 * config.log_every) == 0 or done == start + 1):
                    console.print(f"step {done:>7,}/{config.steps:,} {terms} | {scalars['images_per_second']:.1f} images/s", highlight=False)

            asked_to_stop = stop.before_next_step(done)
            if done % config.checkpoint_every == 0 or last or asked_to_stop:
                _look_at_failures(state, unseen, config.max_skipped_steps, directory, console)
                save(done)
            if asked_to_stop and not last:
                checkpoints.wait()
                raise Interrupted(f"stopped at step {done:,} of {config.steps:,} as asked (SIGTERM), and saved; the same command goes on from there")
            if due(done):
                evaluate_on_the_way(bar, done)
                clock, waited = time.perf_counter(), 0.0

        # ---- the end ----
        watchdog.at(f"saving step {config.steps:,}")
        checkpoints.wait()  # before the evaluation, which may be cut short
        metrics, results = evaluate(bar)
    if distributed.is_primary():
        history.add_evaluation(config.steps, metrics)
        sheet = _sheet(experiment, results, validation)
        history.picture(config.steps, sheet)
        save_image(directory / "predictions.png", sheet)
        history.plot()
        history.close()
        write_json(metrics_file, metrics)
    console.print(metrics_table(metrics, title=f"{experiment.name}: {len(validation)} images"))
    console.print(f"Metrics, curves and pictures are in {directory}.", highlight=False)
    return metrics


class DivergedError(TrainingError):
    """A loss or gradient that is not finite, or a loss beyond all measure. The parameters were left as they were before that step."""


def _check_same(saved: Saved, experiment: Experiment, directory: epath.Path) -> None:
    """Model and data of a resumed run must be what they were; steps, logging and evaluation may change."""
    before, now = to_dict(saved.experiment), to_dict(experiment)
    changed = [f"{part}.{name}" for part in ("model", "data") for name in now[part] if before[part][name] != now[part][name]]
    changed = [name for name in changed if name not in ("data.threads", "data.max_unreadable_images")]
    changed += ["train.seed"] if saved.experiment.train.seed != experiment.train.seed else []
    if changed:
        raise InputError(f"{directory} holds another run ({', '.join(changed)} differ): choose another --directory, or give the same settings")


def _announce(experiment: Experiment, directory: epath.Path, metrics_file: epath.Path) -> None:
    """Writes the run's experiment.json, and makes sure that all processes see the same directory."""
    text = json.dumps(to_dict(experiment), indent=1) + "\n"
    if distributed.is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        metrics_file.unlink(missing_ok=True)  # of a shorter run that now goes on
        write_text(directory / "experiment.json", text)
    if jax.process_count() > 1:
        distributed.barrier()
        there = directory / "experiment.json"
        seen = distributed.all_gather_object(there.exists() and there.read_text() == text)
        if not all(seen):
            blind = ", ".join(str(process) for process, sees in enumerate(seen) if not sees)
            raise InputError(f"the processes must all see the same directory and be given the same settings, but those of {directory} differ in process {blind}")


def _keep_compiled_programs(directory: str) -> None:
    """Programs compiled before are found again at the next start; JAX_COMPILATION_CACHE_DIR has the last word."""
    if not directory or jax.config.jax_compilation_cache_dir:
        return
    place = epath.Path(directory).expanduser() / jax.default_backend()
    if jax.default_backend() == "cpu":  # such programs are made for the instructions of one kind of processor
        cpu = Path("/proc/cpuinfo")
        flags = next((line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))), "") if cpu.exists() else ""
        place /= f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
    jax.config.update("jax_compilation_cache_dir", os.fspath(place))


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


def _look_at_failures(state: TrainState, unseen: deque, allowed: int, directory: epath.Path, console: Console) -> None:
    """Tells of the steps that nothing was learned from, and halts where there were more of them than allowed. Waits for the devices."""
    flags = jax.device_get([flag for *_, flag in unseen])
    failed = [(step, ids) for (step, ids, _), flag in zip(unseen, flags, strict=True) if flag]
    unseen.clear()
    if not failed:
        return
    told = " and ".join(f"step {step:,}, with the images of id {', '.join(map(str, ids))}" for step, ids in failed[:3])
    told = f"the loss is not finite or larger than train.max_loss, or its gradient is not finite, at {told}; nothing was learned from it"
    if int(state.failures) <= allowed:
        console.print(f"Warning: {told}; {int(state.failures)} of train.max_skipped_steps {allowed}.", style="yellow", highlight=False, soft_wrap=True)
        return
    raise DivergedError(
        f"{told}. Look at these images, lower train.learning_rate, set train.clip_norm, or let train.max_skipped_steps leave such steps out; "
        f"{directory} resumes from its last checkpoint"
    )


def _sheet(experiment: Experiment, results: list[dict[str, Any]], validation: DatasetSplit) -> np.ndarray:
    return scoring.prediction_sheet(results, validation, experiment.evaluation.pictures, experiment.evaluation.picture_score)


def _in_one_line(metrics: dict[str, Any]) -> str:
    """The first figure of each kind."""
    first = ((kind, headlines(figures)[0], figures) for kind, figures in metrics.items())
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
