"""Evaluations of a run: during training and at its end, the best checkpoint, and what is logged of them."""

from collections.abc import Callable
from typing import Any

from etils import epath
from rich.console import Console

from mrcnn_jax import distributed
from mrcnn_jax.checkpoint import BEST, CheckpointStore
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.evaluate import Evaluation, evaluate_split
from mrcnn_jax.training.best import BestEvaluation
from mrcnn_jax.training.logging import MetricLogger, headline_metrics
from mrcnn_jax.training.progress import ProgressDisplay, warn
from mrcnn_jax.training.run_setup import Run
from mrcnn_jax.training.validation_loss import validation_losses


class RunEvaluation:
    """Evaluates the states of a run.

    Args:
        run: whose state is evaluated.
        directory: of the run.
        console: for messages.
        history: of the run.
        display: of the progress.
        watch: called now and then; may raise to interrupt an evaluation.
        save_to: saves a checkpoint of the present state in a store.
    """

    def __init__(
        self, run: Run, directory: epath.Path, console: Console, history: MetricLogger,
        display: ProgressDisplay, watch: Callable[[], None], save_to: Callable[[CheckpointStore], None],
    ):  # fmt: skip
        self._run, self._directory, self._console, self._history = run, directory, console, history
        self._display, self._watch, self._save_to = display, watch, save_to
        self._experiment = run.sources.experiment
        lines = distributed.all_gather_object(history.lines)[0]
        self.best = BestEvaluation(self._experiment.train, lines, self._kept_step())

    def is_due(self, step: int) -> bool:
        """Returns whether to evaluate after a step; the evaluation after the last one is not among these."""
        config = self._experiment.train
        return bool(config.evaluate_every and 0 < step < config.steps and step % config.evaluate_every == 0)

    def is_missing(self, step: int) -> bool:
        """Returns whether an evaluation is due that was interrupted after the checkpoint of this step."""
        done = any(distributed.all_gather_object(self._history.has_evaluation(step)))
        return self.is_due(step) and not done

    def during_training(self, step: int) -> None:
        """Evaluates the present state, keeps its checkpoint if it is the best, and logs the evaluation."""
        variables = self._variables()
        evaluation, losses = self.evaluate(variables), self.validation_losses(variables)
        self._keep_if_best(step, evaluation, losses)
        self._history.log_evaluation(step, evaluation.metrics, losses)
        self.log_pictures(step, evaluation)
        self._console.print(f"step {step:,}: {_headlines(evaluation.metrics, losses)}", highlight=False)

    def result(self, step: int) -> Evaluation:
        """Evaluates what the run leaves: the last state, or the best one where that is kept and was better.

        The evaluation of the last state is logged, unless it is already.
        """
        variables = self._variables()
        evaluation, losses = self.evaluate(variables), {}
        if self.best.evaluated != step:
            losses = self.validation_losses(variables)
            self._keep_if_best(step, evaluation, losses)
            self._history.log_evaluation(step, evaluation.metrics, losses)
        if not self._experiment.train.keep_best or self.best.step in (0, step):
            return evaluation
        with self._best_store() as store:
            kept = store.restore_latest(lambda message: warn(self._console, f"{message}."))
        if kept is None:
            return evaluation
        self._console.print(f"step {step:,}: {_headlines(evaluation.metrics, losses)}; step "
                            f"{kept.step:,} was better and is the result", highlight=False)  # fmt: skip
        return self.evaluate(kept.variables)

    def evaluate(self, variables: dict[str, Any]) -> Evaluation:
        """Evaluates a state on the validation images."""
        run, sources = self._run, self._run.sources
        detector = Detector(self._experiment, sources.training.info, variables, run.programs)

        def progress(done: int, _: int) -> None:
            show(done)
            self._watch()

        with self._display.evaluation(len(sources.validation)) as show:
            progress(0, 0)
            pictures = self._experiment.evaluation.pictures
            return evaluate_split(detector, sources.validation, pictures=pictures, progress=progress)

    def validation_losses(self, variables: dict[str, Any]) -> dict[str, float]:
        """Computes the losses on validation images, by name; nothing unless they are asked for."""
        split, programs = self._run.sources.validation, self._run.programs
        return validation_losses(self._experiment, split, variables, programs, self._watch)

    def log_pictures(self, step: int, evaluation: Evaluation, picture: epath.Path | None = None) -> None:
        """Adds pictures to the history, and saves them in a file if one is named."""
        if evaluation.examples:
            self._history.log_image(step, evaluation.sheet, picture)

    def _variables(self) -> dict[str, Any]:
        state = self._run.state
        params = state.params if state.averaged is None else state.averaged
        return self._run.sharding.to_local({"params": params, **state.model_state})

    def _kept_step(self) -> int | None:
        """Returns the step of the best checkpoint, 0 without one; None if none is to be kept."""
        if not self._experiment.train.keep_best:
            return None
        if not (self._directory / BEST).exists():
            return 0
        with self._best_store() as store:
            return max(store.steps, default=0)

    def _best_store(self) -> CheckpointStore:
        return CheckpointStore(self._directory / BEST, keep=1)

    def _keep_if_best(self, step: int, evaluation: Evaluation, losses: dict[str, float]) -> None:
        """Saves the checkpoint of an evaluation that is the best; before it is logged, so that a kill between
        the two repeats it."""
        if self.best.add(step, evaluation.metrics, losses.get("validation_loss")):
            with self._best_store() as store:
                if step not in store.steps:
                    self._save_to(store)


def _headlines(metrics: dict[str, Any], losses: dict[str, float]) -> str:
    """Returns the first headline metric of each kind, and the validation loss, in one line."""
    parts = [f"validation loss {losses['validation_loss']:.3f}"] if losses else []
    for kind, values in metrics.items():
        name = headline_metrics(values)[0]
        parts.append(f"{kind} {name} {'undefined' if values[name] is None else f'{values[name]:.1f}'}")
    return ", ".join(parts)
