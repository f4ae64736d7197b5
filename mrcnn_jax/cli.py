"""The command line: one function a subcommand, no logic of its own."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# XLA's convolutions on CPU train 1.7 to 3 times faster with this fusion off; other platforms do not read the flag
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import tyro
from rich.console import Console

from mrcnn_jax.errors import InputError

CONSOLE = Console()
PROGRAM = "mrcnn"


def train(arguments: list[str]) -> int:
    """Train an experiment, resuming where it stopped, and evaluate it."""
    import experiments
    from mrcnn_jax.config import Experiment
    from mrcnn_jax.training.loop import TrainingDiverged
    from mrcnn_jax.training.loop import train as run

    width = max(map(len, experiments.EXPERIMENTS))
    names = "\n".join(f"  {name:<{width}} {experiments.describe(name)}" for name in experiments.EXPERIMENTS)
    usage = (
        f"usage: {PROGRAM} train EXPERIMENT [--directory DIR] [--data.FIELD ...] [--train.FIELD ...] ...\n\n{train.__doc__}\n\n"
        f"experiments:\n{names}\n\n`{PROGRAM} train EXPERIMENT --help` lists every field with its value."
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    name = arguments[0]
    base = experiments.get(name)

    def command(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")], directory: Path = Path("runs") / name
    ) -> tuple[Experiment, Path]:
        """Train an experiment.

        Args:
            experiment: what to train.
            directory: where the run is kept; an unfinished run there is resumed.
        """
        return experiment, directory

    command.__defaults__ = (base, Path("runs") / name)
    experiment, directory = tyro.cli(command, prog=f"{PROGRAM} train {name}", description=train.__doc__, args=arguments[1:])
    try:
        run(experiment, directory, CONSOLE)
    except TrainingDiverged as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class Evaluate:
    """Score a trained detector with the COCO metrics on a split of a prepared data set."""

    directory: tyro.conf.Positional[Path]
    """Run directory of `train`."""
    dataset: str | None = None
    """Another prepared data set; by default the one it was trained on."""
    split: str | None = None
    """By default the validation split."""
    out: Path | None = None
    """Where metrics.json and results.json go; by default into DIRECTORY/evaluation."""
    pictures: int = 16
    """Images of the contact sheet predictions.png; 0 draws none."""
    cityscapes: Path | None = None
    """The root of Cityscapes, for its official figures beside COCO's (with the extra mrcnn_jax[cityscapes])."""


def evaluate(arguments: list[str]) -> int:
    """Score a trained detector on a data set."""
    options = tyro.cli(Evaluate, prog=f"{PROGRAM} evaluate", args=arguments)
    import dataclasses
    import json

    from rich.progress import Progress

    from mrcnn_jax import scoring
    from mrcnn_jax.cityscapes_evaluation import CityscapesEvaluator, cityscapes_table
    from mrcnn_jax.data.library import open_split
    from mrcnn_jax.detector import load
    from mrcnn_jax.evaluation import metrics_table, write_metrics
    from mrcnn_jax.visualize import save_image

    detector = load(options.directory)
    data = detector.experiment.data
    data = dataclasses.replace(data, dataset=options.dataset or data.dataset)
    source = open_split(data, options.split or data.validation_split)
    if source.info.category_names != detector.class_names:
        raise InputError(f"{source.directory} has the classes {source.info.category_names}, but {options.directory} was trained on {detector.class_names}")
    if options.cityscapes and "masks" not in detector.experiment.model.tasks:
        raise InputError(f"{options.directory} predicts no masks, but masks are what Cityscapes scores")
    official = CityscapesEvaluator(source, options.cityscapes) if options.cityscapes else None
    with Progress(console=CONSOLE) as bar:
        task = bar.add_task("evaluating", total=len(source))
        metrics, results = scoring.evaluate(detector, source, lambda images: bar.advance(task, images))
    out = options.out or options.directory / "evaluation"
    tables = [metrics_table(metrics, title=f"{source.directory.name}/{source.split}: {len(source)} images")]
    write_metrics(out / "metrics.json", metrics)
    (out / "results.json").write_text(json.dumps(results))
    if official:
        with CONSOLE.status("Cityscapes' own evaluation"):
            metrics["cityscapes"] = official(results)
        write_metrics(out / "metrics.json", metrics)
        tables.append(cityscapes_table(metrics["cityscapes"], title="Cityscapes"))
    if options.pictures > 0:
        save_image(out / "predictions.png", scoring.prediction_sheet(results, source, options.pictures, detector.experiment.evaluation.picture_score))
    CONSOLE.print(*tables)
    CONSOLE.print(f"Metrics, results and pictures are in {out}.", highlight=False)
    return 0


@dataclass(frozen=True)
class Predict:
    """Detect objects in image files: overlay pictures and a COCO results file."""

    directory: tyro.conf.Positional[Path]
    """Run directory of `train`."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of them."""
    out: Path = Path("predictions")
    """Gets results.json and, for each image, an overlay picture."""
    score: float = 0.5
    """Detections below this score are not drawn; results.json has them all."""


def predict(arguments: list[str]) -> int:
    """Detect objects in image files."""
    options = tyro.cli(Predict, prog=f"{PROGRAM} predict", args=arguments)
    import json

    from rich.progress import track

    from mrcnn_jax.detector import load
    from mrcnn_jax.evaluation import coco_results
    from mrcnn_jax.visualize import draw_detections, read_image, save_image

    files = _image_files(options.images)
    detector = load(options.directory)
    results, images, unreadable = [], [], []
    for number, file in enumerate(track(files, description="detecting", console=CONSOLE), start=1):
        try:
            image = read_image(file)
        except InputError as error:
            unreadable.append(str(error))
            continue
        detections = detector(image)
        images.append({"id": number, "file_name": str(file), "height": image.shape[0], "width": image.shape[1]})
        results += coco_results(number, detections, detector.info)
        picture = draw_detections(image, detections, detector.class_names, score_threshold=options.score, skeleton=detector.info.skeleton)
        save_image(options.out / f"{number:04}_{file.stem}.png", picture)
    if images:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(results))
        (options.out / "images.json").write_text(json.dumps(images, indent=1))
        CONSOLE.print(f"{len(results)} detections in {len(images)} images: pictures, results.json (COCO results) and images.json "
                      f"(which image_id is which file) are in {options.out}.", highlight=False)  # fmt: skip
    if len(unreadable) > 1:
        raise InputError(f"{len(unreadable)} of {len(files)} images cannot be read; the first: {unreadable[0]}")
    if unreadable:
        raise InputError(unreadable[0])
    return 0


@dataclass(frozen=True)
class Dataset:
    """Turn images and annotations in the format of COCO or Cityscapes into a data set ready for training, or show what a ready one holds."""

    folder: tyro.conf.Positional[Path]
    """A folder in COCO format (annotations/*.json and image folders), the root of Cityscapes (gtFine and leftImg8bit), or a prepared data set."""
    out: Path | None = None
    """Where the prepared set goes; by default data/<name of the folder>."""
    train: tuple[Path, Path] | None = None
    """Image folder and annotation file of the training split, where they cannot be found by name."""
    validation: tuple[Path, Path] | None = None
    """The same for the validation split."""
    validation_images: int = 0
    """With a single annotation file: this many images, the last by id, are kept for validation."""
    keypoints: bool = False
    """Prefer person_keypoints_*.json to instances_*.json."""
    overwrite: bool = False
    """Replace a prepared set of that name."""
    draw: Path | None = None
    """Also draw a contact sheet of images with their objects into this file."""


def dataset(arguments: list[str]) -> int:
    """Prepare a data set in the format of COCO or Cityscapes, and show what is in it."""
    options = tyro.cli(Dataset, prog=f"{PROGRAM} dataset", args=arguments)
    from mrcnn_jax.data import cityscapes, coco, records
    from mrcnn_jax.visualize import save_image

    if (options.folder / "metadata.json").exists():
        prepared = options.folder
    else:
        prepared = options.out or Path("data") / options.folder.absolute().name
        given = {"train": options.train, "validation": options.validation}
        splits = {split: coco.Source(*paths) for split, paths in given.items() if paths}
        if splits and "train" not in splits:
            raise InputError("--validation needs --train IMAGES ANNOTATIONS beside it")
        if not splits and cityscapes.is_cityscapes(options.folder):
            if options.validation_images or options.keypoints:
                raise InputError(f"{options.folder} is laid out like Cityscapes, where --validation-images and --keypoints mean nothing")
            reports = cityscapes.prepare(options.folder, prepared, overwrite=options.overwrite)
        else:
            reports = coco.prepare(
                splits or options.folder, prepared, validation_images=options.validation_images, keypoints=options.keypoints, overwrite=options.overwrite
            )
        for report in reports.values():
            CONSOLE.print(str(report), highlight=False)
    CONSOLE.print(records.summary(prepared))
    if options.draw:
        from mrcnn_jax.scoring import ground_truth_sheet

        save_image(options.draw, ground_truth_sheet(records.open_dataset(prepared, records.splits(prepared)[0]), 16))
        CONSOLE.print(f"Some of its images are drawn in {options.draw}.", highlight=False)
    CONSOLE.print(f"Ready: --data.dataset {prepared}", highlight=False)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": train, "evaluate": evaluate, "predict": predict, "dataset": dataset}


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    listing = "\n".join(f"  {name:<10}{function.__doc__}" for name, function in COMMANDS.items())
    usage = f"usage: {PROGRAM} COMMAND ...\n\nMask R-CNN in JAX.\n\ncommands:\n{listing}\n\n`{PROGRAM} COMMAND --help` says more."
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"there is no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except InputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; a training goes on from its last checkpoint when the same command is given again", file=sys.stderr)
        return 130


def console() -> None:
    """Entry point of the installed command `mrcnn`."""
    try:
        try:
            status = main()
        finally:  # the argument parser leaves with SystemExit
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit complains
        status = 1
    sys.exit(status)


def _image_files(paths: tuple[Path, ...]) -> list[Path]:
    kinds = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
    files = []
    for path in paths:
        if not path.exists():
            raise InputError(f"there is no image file or folder {path}")
        files += sorted(file for file in path.iterdir() if file.suffix.lower() in kinds) if path.is_dir() else [path]
    if not files:
        raise InputError(f"no image files in {', '.join(map(str, paths)) or 'the command line'}: give image files, or folders that hold {', '.join(kinds)}")
    return files
