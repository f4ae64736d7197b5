"""Training steps that were skipped as their loss or gradient was not finite, or the loss too large."""

from typing import Any

import jax
from rich.console import Console

from mrcnn_jax.errors import TrainingError
from mrcnn_jax.training.progress import warn
from mrcnn_jax.typing import Array, Int


class DivergedError(TrainingError):
    """More steps were skipped than train.max_skipped_steps allows."""


class SkippedSteps:
    """Reports skipped steps with the ids of their images, and stops a run with too many of them.

    Flags stay on the devices until they are checked, so that the host does not wait for each step.

    Args:
        allowed: train.max_skipped_steps.
        directory: of the run, for the message.
        console: for warnings.
    """

    def __init__(self, allowed: int, directory: Any, console: Console):
        self._allowed, self._directory, self._console = allowed, directory, console
        self._unchecked: list[tuple[int, list[int], Any]] = []

    def add(self, step: int, image_ids: list[int], skipped: Any) -> None:
        """Adds a step with its flag, which may still be computed."""
        self._unchecked.append((step, image_ids, skipped))

    def check(self, total: Int[Array, ""]) -> None:
        """Waits for the flags and warns of skipped steps.

        Args:
            total: number of skipped steps of the whole run.

        Raises:
            DivergedError: they are more than allowed.
        """
        flags = jax.device_get([flag for *_, flag in self._unchecked])
        skipped = [entry[:2] for entry, flag in zip(self._unchecked, flags, strict=True) if flag]
        self._unchecked.clear()
        if not skipped:
            return
        named = [f"step {step:,} (image ids {', '.join(map(str, ids))})" for step, ids in skipped[:3]]
        why = "loss or gradient is not finite, or the loss exceeds train.max_loss"
        message = f"skipped {' and '.join(named)}: {why}"
        if total > self._allowed:
            raise DivergedError(
                f"{message}. Inspect these images, lower train.learning_rate, set train.clip_norm, or raise "
                f"train.max_skipped_steps; {self._directory} resumes from its last checkpoint"
            )
        warn(self._console, f"{message}; {total} of {self._allowed} allowed (train.max_skipped_steps).")
