"""The best evaluation of a run: its checkpoint is kept, and training ends when it is not surpassed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mrcnn_jax import distributed
from mrcnn_jax.config import TrainConfig
from mrcnn_jax.training.history import read_history


def mean_precision(metrics: Mapping[str, Mapping[str, float | None]]) -> float:
    """Returns the mean AP of boxes, masks and keypoints, by which evaluations are compared.

    The mean AR of 1,000 proposals for an RPN alone; -1 where nothing is defined.
    """
    values = [of_kind.get("AP", of_kind.get("AR1000")) for of_kind in metrics.values()]
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else -1.0


class BestEvaluation:
    """The best of the evaluations so far, and how many have followed it.

    Args:
        config: ``keep_best``, ``patience`` and ``monitor``.
        lines: history of the run.
        kept: step of the checkpoint that is kept, with ``keep_best``; 0 without one.
    """

    def __init__(self, config: TrainConfig, lines: Sequence[Mapping[str, Any]], kept: int | None = None):
        self._config, self.step, self._worse = config, 0, 0
        worst = self._score = -1.0 if config.monitor == "ap" else float("-inf")
        self.evaluated = 0  # last step that was evaluated
        scores = dict(evaluation_scores(lines, config.monitor))
        for step, score in scores.items():
            self._count(step, score)
        if kept is not None and kept != self.step:  # the setting is new, or is monitored by something else
            self.step, self._score = (kept, scores[kept]) if kept in scores else (0, worst)

    def add(
        self, step: int, metrics: Mapping[str, Mapping[str, float | None]], loss: float | None = None
    ) -> bool:
        """Adds an evaluation with its validation loss; returns whether it is the best, which is then to be
        kept."""
        score = mean_precision(metrics) if self._config.monitor == "ap" else -loss
        return self._count(step, score) and self._config.keep_best

    @property
    def is_exhausted(self) -> bool:
        """Returns whether ``patience`` evaluations in a row have not been better."""
        return 0 < self._config.patience <= self._worse

    def _count(self, step: int, score: float) -> bool:
        better, self.evaluated = score > self._score, step
        if better:
            self.step, self._score = step, score
        self._worse = 0 if better else self._worse + 1
        return better


def evaluation_scores(lines: Sequence[Mapping[str, Any]], monitor: str) -> Iterator[tuple[int, float]]:
    """Yields step and score of the evaluations in a history; the greatest score is the best.

    Args:
        lines: of the history.
        monitor: train.monitor.
    """
    for line in lines:
        metrics: dict[str, dict[str, float | None]] = {}
        for name, value in line.items():
            kind, slash, metric = name.partition("/")
            if slash:
                metrics.setdefault(kind, {})[metric] = value
        if metrics and monitor == "ap":
            yield line["step"], mean_precision(metrics)
        elif metrics:
            loss = line.get("validation_loss")  # absent before it was computed
            yield line["step"], float("-inf") if loss is None else -loss


def has_ended(
    config: TrainConfig, step: int, directory: epath.Path, warn: Callable[[str], None]
) -> bool:
    """Returns whether a run at this step has done all steps, or has ended early; all processes agree."""
    if step >= config.steps or not config.patience or not step:
        return step >= config.steps
    lines = read_history(directory / "history.jsonl", warn) if distributed.is_primary() else []
    return BestEvaluation(config, distributed.all_gather_object(lines)[0]).is_exhausted
