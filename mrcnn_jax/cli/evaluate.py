"""`mrcnn evaluate`: scores a trained detector on a split of a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.inference_options import DetectorOptions, given_settings, parse_with_settings
from mrcnn_jax.cli.terminal import TrainedDirectory, folder_name, progress_bar, refuse_experiment
from mrcnn_jax.config.validation import MOST_PICTURES, require_whole
from mrcnn_jax.errors import KeyboardInterrupted, printable
from mrcnn_jax.paths import require_place


@dataclass(frozen=True)
class Options(DetectorOptions):
    """Evaluate a trained detector with the COCO metrics on a split of a prepared data set."""

    directory: TrainedDirectory
    dataset: str | None = None
    """Prepared data set, whose classes are matched by name; by default the one it was trained on."""
    split: str | None = None
    """Split to evaluate on; by default the validation split."""
    out: str | None = None
    """Directory of metrics.json, results.json, a contact sheet and a report; by default DIR/evaluation, and
    evaluation/NAME for weights by name."""
    pictures: int | None = None
    """Images of the contact sheet; 0 draws none; by default evaluation.pictures."""
    cityscapes: Path | None = None
    """Root of Cityscapes, to compute its official metrics too (needs the extra mrcnn_jax[cityscapes])."""
    color_by: Literal["object", "class"] = "object"
    """Colours of the contact sheet: one for each object, or one for each class."""
    report: bool = True
    """Write report.html, with kinds of errors, curves, classes, worst images and doubtful annotations."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn evaluate`; returns the exit status."""
    options = parse_with_settings(Options, "evaluate", arguments)
    refuse_experiment(options.directory)
    if options.pictures is not None:
        require_whole("--pictures", options.pictures, 0, MOST_PICTURES)
    from etils import epath

    from mrcnn_jax.evaluation.report.files import REPORT
    from mrcnn_jax.inference.evaluate import evaluate
    from mrcnn_jax.weights.locate import is_local, short_name

    if options.out is not None:
        require_place(options.out, "--out")
    name = options.directory
    default = epath.Path(name) / "evaluation" if is_local(name) else Path("evaluation") / short_name(name)
    console, out = Console(), epath.Path(options.out or default)
    done = 0

    def count(images: int, total: int) -> None:
        nonlocal done
        done = images
        progress(images, total)

    try:
        with progress_bar("evaluating") as progress:
            evaluation = evaluate(
                options.directory, options.dataset, options.split, out, pictures=options.pictures,
                cityscapes=options.cityscapes, progress=count, settings=given_settings(options),
                color_by=options.color_by, store_programs=True, report=options.report,
                tile=options.tile, tile_overlap=options.tile_overlap, checkpoint=options.checkpoint,
            )  # fmt: skip
    except KeyboardInterrupt:
        kept = f"detections in {done} images are in {out}/results.json" if done else "nothing is written"
        raise KeyboardInterrupted(f"interrupted; {kept}") from None
    console.print(*evaluation.tables())
    print(f"Metrics, results and pictures are in {folder_name(out)}.")
    if (out / REPORT).exists():
        print(f"Report: {printable(out / REPORT)}")
    return OK
