"""Training of an experiment: the loop over steps, with logs, checkpoints and evaluations."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import jax
from etils import epath
from rich.console import Console

from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.checkpoint import CheckpointStore, run_directory
from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import HostLostError, TrainingError, first_line
from mrcnn_jax.evaluation.coco import metrics_table
from mrcnn_jax.runtime import fewer_collections
from mrcnn_jax.training.best import has_ended
from mrcnn_jax.training.history import read_metrics
from mrcnn_jax.training.loggers import Logger, require_loggers, start_loggers
from mrcnn_jax.training.logging import MetricLogger
from mrcnn_jax.training.preemption import PreemptionHandler, Watchdog
from mrcnn_jax.training.progress import ProgressDisplay, SaveTimer, StepTimer, warn
from mrcnn_jax.training.run_evaluation import RunEvaluation
from mrcnn_jax.training.run_lock import claimed_directory, require_run_directory
from mrcnn_jax.training.run_setup import Run, open_sources, open_splits, require_origins, start_run
from mrcnn_jax.training.skipped_steps import SkippedSteps

_DETERMINISTIC = ("INVALID_ARGUMENT", "UNIMPLEMENTED")
"""Kinds of XLA's errors that come again with the same command, unlike the loss of another process."""


def train(
    experiment: Experiment,
    directory: str | os.PathLike,
    console: Console | None = None,
    *,
    loggers: Sequence[Logger] = (),
    store_programs: bool = False,
    own_process: bool = False,
) -> dict[str, Any]:
    """Trains an experiment in a run directory, resuming a run that is there, and evaluates it.

    The directory, local or in a bucket (gs://...), gets checkpoints/, experiment.json, history.jsonl,
    metrics.csv, curves.png, metrics.json, predictions.png and what train.loggers write. Several processes
    (``distributed.initialize``) each call this with the same arguments and a directory that all of them see;
    the primary one writes all files but the checkpoints.

    Args:
        experiment: what to train.
        directory: of the run.
        console: for messages; by default standard output.
        loggers: get metrics and pictures too, beside those of train.loggers.
        store_programs: keep the traced and compiled step in ``train.compilation_cache`` (``StoredFunction``),
            which halves the time of later starts; not for processes that replace functions at run time.
        own_process: the process exists for this run alone, so that a request to stop that finds nothing to
            save may end it at once (``PreemptionHandler``).

    Returns:
        COCO metrics by kind ("bbox", "segm", "keypoints", or "proposals") and name.

    Raises:
        InputError: the experiment does not match its data, weights or directory.
        TrainingError: the run diverges, memory does not suffice, or files cannot be written.
        Interrupted: the run was asked to stop (Ctrl-C, SIGTERM, SIGHUP) or lost a process; the same call
            resumes it.
    """
    console = (console or Console()) if distributed.is_primary() else Console(quiet=True)
    try:
        with ExitStack() as resources, fewer_collections():
            run = run_directory(directory)
            resources.enter_context(preemption := PreemptionHandler(own_process, run / "checkpoints"))
            return _train(experiment, run, console, resources, preemption, loggers, store_programs)
    except jax.errors.JaxRuntimeError as error:
        reason = first_line(error)
        if "RESOURCE_EXHAUSTED" in reason:
            raise TrainingError(
                "out of device memory: lower train.images_per_device, raise train.accumulate or set "
                f"train.remat ({reason})"
            ) from error
        if jax.process_count() > 1 and not reason.startswith(_DETERMINISTIC):
            raise HostLostError(
                f"the connection to another process is lost ({reason}): repeat the command in all processes"
            ) from error
        raise


def _train(
    experiment: Experiment, directory: epath.Path, console: Console, resources: ExitStack,
    preemption: PreemptionHandler, loggers: Sequence[Logger], store_programs: bool,
) -> dict[str, Any]:  # fmt: skip
    watchdog = resources.enter_context(Watchdog(experiment.train.stall_seconds))
    require_run_directory(directory)  # before an embedded data set is drawn
    require_origins(experiment, directory)
    require_loggers(experiment, directory)
    splits = open_splits(experiment.data)  # a missing data set is an error before anything is written
    resources.enter_context(claimed_directory(directory))
    store = CheckpointStore(directory / "checkpoints", experiment.train.keep_checkpoints)
    checkpoints, file = resources.enter_context(store), directory / "metrics.json"
    sources = open_sources(experiment, splits, directory, checkpoints, console)

    def warning(message: str) -> None:
        warn(console, f"{message}.")

    experiment = sources.experiment
    ended = has_ended(experiment.train, sources.step, directory, warning)
    if ended and (metrics := read_metrics(file, warning)):
        limit = "steps" if sources.step >= experiment.train.steps else "patience"
        console.print(f"{directory} is finished: {sources.step:,} steps. Its metrics are in {file}; "
                      f"raise --train.{limit} to train longer, or fine-tune it on another --data.dataset.",
                      highlight=False, markup=False, soft_wrap=True)  # fmt: skip
        return metrics

    loggers = start_loggers(experiment, directory, sources.step, loggers)
    history = MetricLogger(directory, sources.step, distributed.is_primary(), warning, loggers)
    resources.push(lambda kind, error, trace: history.close(error))  # however training ends
    run = start_run(sources, directory, console, store_programs)
    with ProgressDisplay(console, experiment.train.steps, sources.step) as display:
        loop = _Loop(run, directory, console, checkpoints, history, preemption, watchdog, display)
        loop.run_steps()
        evaluation = loop.evaluation.result(loop.step)
    preemption.unsaved = True  # what remains takes seconds, and is not interrupted
    if distributed.is_primary():
        write_json(file, evaluation.metrics)  # first: nothing that is only drawn or printed can lose it
        loop.evaluation.log_pictures(loop.step, evaluation, directory / "predictions.png")
    title = f"{experiment.name}: {len(sources.validation)} images"
    console.print(metrics_table(evaluation.metrics, title=title))
    console.print(f"Metrics, curves and pictures are in {directory}.", highlight=False, markup=False)
    return evaluation.metrics


class _Loop:
    """The loop over the steps of a run, and what happens between steps."""

    def __init__(
        self, run: Run, directory: epath.Path, console: Console, checkpoints: CheckpointStore,
        history: MetricLogger, preemption: PreemptionHandler, watchdog: Watchdog, display: ProgressDisplay,
    ):  # fmt: skip
        self.step, self.experiment = run.sources.step, run.sources.experiment
        self.run, self.console, self.checkpoints, self.history = run, console, checkpoints, history
        self.preemption, self.watchdog, self.display = preemption, watchdog, display
        self.timer = StepTimer(run.images_per_step)
        self.skipped = SkippedSteps(self.experiment.train.max_skipped_steps, directory, console)
        self.evaluation = RunEvaluation(
            run, directory, console, history, display, self._while_evaluating, self._save_to
        )
        self.best = self.evaluation.best
        self.saved, self.save_timer = self.step, SaveTimer(self.experiment.train.checkpoint_minutes)

    def run_steps(self) -> None:
        """Trains to the last step, which is on disk when this returns."""
        run, config, first = self.run, self.experiment.train, self.step + 1
        if self.evaluation.is_missing(self.step):
            self._evaluate_and_log()
        self.timer.reset()
        while self.step < config.steps and not self.best.is_exhausted:
            self.watchdog.progress(f"waiting for the images of step {self.step:,}")
            with self.timer.waiting_for("images"):
                batch, image_ids = next(run.batches)
            self.watchdog.progress(f"computing step {self.step:,}")
            run.state, metrics = run.train_step(run.state, batch)
            self.skipped.add(self.step, image_ids, metrics.pop("failed"))
            self.step += 1
            self.preemption.unsaved = True
            self.timer.count_step()
            last = self.step == config.steps

            if self.step % config.log_every == 0 or self.step == first or last:
                self._log(metrics)
            stop = self.preemption.should_stop(self.step)
            if self._checkpoint_due(first) or last or stop:
                self._save()
            if stop and not last:
                self._wait_for_checkpoint()
                done = f" and saved at step {self.step:,} of {config.steps:,}; repeat the command to resume"
                raise self.preemption.interruption(done)
            if self.evaluation.is_due(self.step):
                self._evaluate_and_log()
        if self.best.is_exhausted:
            since = f"since step {self.best.step:,} was better" if self.best.step else "has a defined AP"
            self.console.print(f"No evaluation {since}, so training ends at step {self.step:,} of "
                               f"{config.steps:,} (train.patience).")  # fmt: skip
        self._wait_for_checkpoint()  # the evaluation that follows may be interrupted

    def _log(self, metrics: dict[str, Any]) -> None:
        with self.timer.waiting_for("devices"):
            scalars = {name: float(value) for name, value in metrics.items()}
        self.skipped.check(self.run.state.failures)
        for message in self.run.unreadable.new_messages():  # every process reads images of its own
            console = self.console if distributed.is_primary() else Console(stderr=True)
            warn(console, f"{message}; another image replaces it.")
        scalars |= {"learning_rate": float(self.run.schedule(self.step - 1)), **self.timer.lap()}
        self.history.log(self.step, scalars)
        self.display.step(self.step, scalars)

    def _checkpoint_due(self, first: int) -> bool:
        """Returns whether to save now, by steps or by time, on which all processes agree when they log."""
        config = self.experiment.train
        if self.step == first:
            self.save_timer.reset(first=True)  # after the compilation
        by_time = self.save_timer.is_due()
        if jax.process_count() > 1:
            by_time = self.step % config.log_every == 0 and distributed.all_gather_object(by_time)[0]
        return by_time or self.step % config.checkpoint_every == 0

    def _save(self) -> None:
        self.skipped.check(self.run.state.failures)
        self.watchdog.progress(f"saving step {self.step:,}")
        self.history.flush()
        self._save_to(self.checkpoints)
        self.saved = self.step
        self.save_timer.reset()

    def _save_to(self, store: CheckpointStore) -> None:
        run, sources = self.run, self.run.sources
        images_seen = sources.images_seen + (self.step - sources.step) * run.images_per_step
        state = run.sharding.to_global(run.state)
        info, contents = sources.training.info, sources.contents
        store.save(self.step, state, images_seen, self.experiment, info, contents)

    def _wait_for_checkpoint(self) -> None:
        """Waits until the checkpoint of this step is complete; from then on nothing can be lost."""
        self.watchdog.progress(f"saving step {self.step:,}")
        self.checkpoints.wait()
        self.preemption.unsaved = False

    def _evaluate_and_log(self) -> None:
        if self.saved != self.step:
            self._save()
        self._wait_for_checkpoint()
        self.evaluation.during_training(self.step)
        self.timer.reset()

    def _while_evaluating(self) -> None:
        self.watchdog.progress("evaluating")
        self.preemption.raise_if_requested()
