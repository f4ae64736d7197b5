"""`mrcnn evaluate`: scores a trained detector on a split of a data set."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import TrainedDirectory, parse, progress_bar


@dataclass(frozen=True)
class Options:
    """Evaluate a trained detector with the COCO metrics on a split of a prepared data set."""

    directory: TrainedDirectory
    dataset: str | None = None
    """Prepared data set whose classes the detector knows; by default the one it was trained on."""
    split: str | None = None
    """Split to evaluate on; by default the validation split."""
    out: Path | None = None
    """Directory of metrics.json, results.json and predictions.png; by default DIR/evaluation."""
    pictures: int | None = None
    """Images of the contact sheet predictions.png; 0 draws none; by default evaluation.pictures."""
    cityscapes: Path | None = None
    """Root of Cityscapes, to compute its official metrics too (needs the extra mrcnn_jax[cityscapes])."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn evaluate`; returns the exit status."""
    options = parse(Options, "evaluate", arguments)
    from etils import epath

    from mrcnn_jax.inference.evaluate import evaluate

    console, out = Console(), epath.Path(options.out or epath.Path(options.directory) / "evaluation")
    with progress_bar("evaluating") as progress:
        evaluation = evaluate(
            options.directory, options.dataset, options.split, out,
            pictures=options.pictures, cityscapes=options.cityscapes, progress=progress,
        )  # fmt: skip
    console.print(*evaluation.tables())
    console.print(f"Metrics, results and pictures are in {out}.", highlight=False)
    return OK
