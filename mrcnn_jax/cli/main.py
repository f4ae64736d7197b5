"""The command line: one function a subcommand, no logic of its own."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

# XLA's convolutions on CPU train 1.7 to 3 times faster with this fusion off; other platforms do not read the flag
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")

import tyro
from etils import epath
from rich.console import Console

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.cli import exit_codes
from mrcnn_jax.cli.exit_codes import exit_status
from mrcnn_jax.errors import HostLostError, InputError, Interrupted, TrainingError

CONSOLE = Console()
PROGRAM = "mrcnn"


def train(arguments: list[str]) -> int:
    """Train an experiment, or trained weights on other data, resuming where it stopped, and evaluate it."""
    if threading.current_thread() is threading.main_thread():  # until the run itself sees to it; not by an exception, which would be lost in a callback
        signal.signal(signal.SIGTERM, lambda *_: os._exit(exit_codes.RETRY))
    from mrcnn_jax import distributed, presets
    from mrcnn_jax.config import Experiment
    from mrcnn_jax.training.loop import train as run

    width = max(map(len, presets.PRESETS))
    names = "\n".join(f"  {name:<{width}} {presets.describe(name)}" for name in presets.PRESETS)
    usage = (
        f"usage: {PROGRAM} train EXPERIMENT|DIR [--directory DIR] [--data.FIELD ...] [--train.FIELD ...] ...\n\n{train.__doc__}\n\n"
        f"experiments:\n{names}\n\n"
        f"DIR is the directory of imported weights (`{PROGRAM} import-weights`) or of another run: training starts from what it holds, with its settings,\n"
        "on the data set --data.dataset, whose classes it takes; layers made for other classes start at random. By default runs/<name of DIR>_tuned\n"
        "is the new run. A backbone alone is given to an experiment by --train.init-from DIR.\n\n"
        f"`{PROGRAM} train EXPERIMENT --help` lists every field with its value."
    )
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    name = arguments[0]
    if name not in presets.PRESETS and (epath.Path(name) / "experiment.json").exists():
        base, place = _tuned(epath.Path(name)), Path("runs") / f"{epath.Path(name).absolute().name}_tuned"
    else:
        base, place = presets.get(name), Path("runs") / name

    def command(
        experiment: Annotated[Experiment, tyro.conf.arg(name="")], directory: str, coordinator: str | None = None, processes: int | None = None,
        process: int | None = None,
    ) -> Run:  # fmt: skip
        """Train an experiment.

        Args:
            experiment: what to train.
            directory: where the run is kept (also gs://...); resumed if unfinished.
            coordinator: HOST:PORT of process 0, where several are started by hand; srun, mpirun and TPU pods are recognised, unless this is none.
            processes: how many processes are started by hand.
            process: which of them this is, from 0.
        """
        return Run(experiment, directory, coordinator, processes, process)

    command.__defaults__ = (base, str(place), None, None, None)
    asked = tyro.cli(command, prog=f"{PROGRAM} train {name}", description=train.__doc__, args=arguments[1:])
    distributed.initialize(asked.coordinator, asked.processes, asked.process)
    try:
        run(asked.experiment, asked.directory, CONSOLE)
    except HostLostError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr, flush=True)
        os._exit(exit_status(error))  # the usual way out would wait for the process that is lost
    return 0


class Run(NamedTuple):
    """What `train` is asked for."""

    experiment: Any
    directory: str
    coordinator: str | None
    processes: int | None
    process: int | None


def _tuned(directory: epath.Path):
    """The experiment of a directory, starting from its weights, with the classes of whatever data set it is given."""
    from dataclasses import replace

    from mrcnn_jax.config import read_experiment
    from mrcnn_jax.inference.detector import read_weights

    experiment = read_experiment(directory / "experiment.json")
    model = experiment.model
    if not model.tasks and "rpn" not in read_weights(directory).variables["params"]:
        raise InputError(f"{directory} holds a backbone alone: name an experiment that has it, and give --train.init-from {directory}")
    model = replace(model, num_classes=0, keypoint=replace(model.keypoint, num_keypoints=0))
    return replace(experiment, model=model, train=replace(experiment.train, init_from=str(directory)))


@dataclass(frozen=True)
class Evaluate:
    """Score a trained detector with the COCO metrics on a split of a prepared data set."""

    directory: tyro.conf.Positional[str]
    """Run directory of `train`, or imported weights."""
    dataset: str | None = None
    """Another prepared data set, whose classes the detector knows; by default the one it was trained on."""
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

    from rich.progress import Progress

    from mrcnn_jax.data.catalog import open_split
    from mrcnn_jax.evaluation.cityscapes import CityscapesEvaluator, cityscapes_table
    from mrcnn_jax.evaluation.coco import metrics_table
    from mrcnn_jax.inference import evaluate as scoring
    from mrcnn_jax.inference.detector import load
    from mrcnn_jax.visualize.draw import save_image

    detector = load(options.directory)
    data = detector.experiment.data
    data = dataclasses.replace(data, dataset=options.dataset or data.dataset)
    source = open_split(data, options.split or data.validation_split)
    asked, known = ({*zip(info.category_ids, info.category_names, strict=True)} for info in (source.info, detector.info))
    if asked - known:
        unknown = ", ".join(f"{id_} {name}" for id_, name in sorted(asked - known))
        raise InputError(f"{source.directory} has classes (id and name) that {options.directory} does not know: {unknown}")
    joints, wanted = (len(info.keypoint_names) for info in (source.info, detector.info))
    if "keypoints" in detector.experiment.model.tasks and joints != wanted:
        raise InputError(f"{source.directory} has {joints} keypoints, but {options.directory} predicts {wanted}")
    if options.cityscapes and "masks" not in detector.experiment.model.tasks:
        raise InputError(f"{options.directory} predicts no masks, but masks are what Cityscapes scores")
    official = CityscapesEvaluator(source, options.cityscapes) if options.cityscapes else None
    with Progress(console=CONSOLE) as bar:
        task = bar.add_task("evaluating", total=len(source))
        metrics, results = scoring.evaluate(detector, source, lambda images: bar.advance(task, images))
    out = epath.Path(options.out or epath.Path(options.directory) / "evaluation")
    tables = [metrics_table(metrics, title=f"{source.directory.name}/{source.split}: {len(source)} images")]
    write_json(out / "metrics.json", metrics)
    write_json(out / "results.json", results, indent=None)
    if official:
        with CONSOLE.status("Cityscapes' own evaluation"):
            metrics["cityscapes"] = official(results)
        write_json(out / "metrics.json", metrics)
        tables.append(cityscapes_table(metrics["cityscapes"], title="Cityscapes"))
    if options.pictures > 0:
        save_image(out / "predictions.png", scoring.prediction_sheet(results, source, options.pictures, detector.experiment.evaluation.picture_score))
    CONSOLE.print(*tables)
    CONSOLE.print(f"Metrics, results and pictures are in {out}.", highlight=False)
    return 0


@dataclass(frozen=True)
class Predict:
    """Detect objects in image files: overlay pictures and a COCO results file."""

    directory: tyro.conf.Positional[str]
    """Run directory of `train`, or imported weights."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, or folders of them."""
    out: Path = Path("predictions")
    """Gets results.json and, for each image, an overlay picture."""
    score: float = 0.5
    """Detections below this score are not drawn; results.json has them all."""


def predict(arguments: list[str]) -> int:
    """Detect objects in image files."""
    options = tyro.cli(Predict, prog=f"{PROGRAM} predict", args=arguments)

    from rich.progress import track

    from mrcnn_jax.evaluation.coco import coco_results
    from mrcnn_jax.inference.detector import load
    from mrcnn_jax.visualize.draw import draw_detections, read_image, save_image

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
        write_json(options.out / "results.json", results, indent=None)
        write_json(options.out / "images.json", images)
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
    from mrcnn_jax.data import dataset as records
    from mrcnn_jax.data.formats import cityscapes
    from mrcnn_jax.data.formats import coco_layout as coco
    from mrcnn_jax.visualize.draw import save_image

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
        from mrcnn_jax.inference.evaluate import ground_truth_sheet

        save_image(options.draw, ground_truth_sheet(records.open_dataset(prepared, records.splits(prepared)[0]), 16))
        CONSOLE.print(f"Some of its images are drawn in {options.draw}.", highlight=False)
    CONSOLE.print(f"Ready: --data.dataset {prepared}", highlight=False)
    return 0


@dataclass(frozen=True)
class ImportWeights:
    """Turn weights of torchvision, Detectron2 or the original Detectron into a directory that `predict`, `evaluate` and `train` take.

    What the library does in its own way (channel order, resizing, anchors, RoI pooling, ...) becomes configuration. Any field of the
    experiment can be given after the file and replaces what was recognised, as in `--model.box.score-threshold 0.3` or
    `--data.short-edge-test 320`; `mrcnn train mask_rcnn_r50_fpn --help` lists the fields.

    A file does not say everything. Of torchvision's first generation (maskrcnn_resnet50_fpn, ...) the published COCO models have batch norm
    without epsilon, and so it is taken; models that were trained from ImageNet weights with FrozenBatchNorm2d as it is have
    `--model.backbone.norm-epsilon 1e-5`.
    """

    source: tyro.conf.Positional[Literal["torchvision", "detectron2"]]
    """detectron2 also reads files of the original Detectron, and MSRA's backbones."""
    file: tyro.conf.Positional[Path]
    """A state dict, or a file of a model zoo: .safetensors, .npz, .pkl; .pth with the extra mrcnn_jax[torch]. Nothing in it is executed."""
    out: Path
    """Where the weights go: a new directory."""
    config: Path | None = None
    """Detectron2's configuration file (YAML), if the model is not one of its model zoo."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the weights and without background, if they are not COCO's."""
    partial: bool = False
    """Leave tensors that are missing to chance, so that training can start from the rest."""


def import_weights(arguments: list[str]) -> int:
    """Take over weights of torchvision, Detectron2 or Detectron."""
    options, fields = tyro.cli(ImportWeights, prog=f"{PROGRAM} import-weights", args=arguments, return_unknown_args=True)
    from mrcnn_jax.config import Experiment
    from mrcnn_jax.weights.import_export import recognise, save
    from mrcnn_jax.weights.readers import read_tensors
    from mrcnn_jax.weights.report import conventions, describe

    found = recognise(options.source, read_tensors(options.file), str(options.file), options.config)
    experiment = tyro.cli(Experiment, default=found.experiment, prog=f"{PROGRAM} import-weights", args=fields)
    missing = save(found, experiment, options.out, options.classes, options.partial)
    lines = [describe(found, experiment.model), *(f"  {line}" for line in conventions(experiment.model, experiment.data))]
    lines += [f"Missing, {len(missing)} tensors: {', '.join(missing)}"] if missing else []
    tune = f"{PROGRAM} train {options.out} --data.dataset data/mine --directory runs/mine"
    if found.backbone_alone:
        following = [f"{PROGRAM} train EXPERIMENT --train.init-from {options.out}"]
    else:
        following = [tune] if missing else [f"{PROGRAM} predict {options.out} photo.jpg", tune]
    lines += [f"It is in {options.out}. Next:", *(f"  {command}" for command in following)]
    CONSOLE.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class ExportWeights:
    """Write a detector's weights as a state dict that torchvision loads."""

    target: tyro.conf.Positional[Literal["torchvision"]]
    """The library to write for."""
    directory: tyro.conf.Positional[Path]
    """Run directory of `train`, or imported weights."""
    file: tyro.conf.Positional[Path]
    """.safetensors or .npz; .pth with the extra mrcnn_jax[torch]."""


def export_weights(arguments: list[str]) -> int:
    """Write weights for torchvision."""
    options = tyro.cli(ExportWeights, prog=f"{PROGRAM} export-weights", args=arguments)
    from mrcnn_jax.config import read_experiment
    from mrcnn_jax.weights import import_export as exchange
    from mrcnn_jax.weights.report import loading_in_torchvision

    differences = exchange.export_weights(options.target, options.directory, options.file)
    loading, settled = loading_in_torchvision(read_experiment(options.directory / "experiment.json").model, options.file)
    differences = [line for line in differences if not line.startswith(settled)]
    lines = [f"The weights are in {options.file}. In torchvision:", *(f"  {line}" for line in loading)]
    if differences:
        lines.append("That model differs in the following; torchvision's constructor has arguments for some of these.")
        lines += [f"  {line}" for line in differences]
    CONSOLE.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train, "evaluate": evaluate, "predict": predict, "dataset": dataset,
    "import-weights": import_weights, "export-weights": export_weights,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    listing = "\n".join(f"  {name:<16}{function.__doc__}" for name, function in COMMANDS.items())
    usage = f"usage: {PROGRAM} COMMAND ...\n\nMask R-CNN in JAX.\n\ncommands:\n{listing}\n\n`{PROGRAM} COMMAND --help` says more."
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage)
        return 0 if arguments else 2
    try:
        if arguments[0] not in COMMANDS:
            raise InputError(f"there is no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except (InputError, TrainingError, Interrupted) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return exit_status(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, above all
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; a training goes on from its last checkpoint when the same command is given again", file=sys.stderr)
        return 130


def hush() -> None:
    """Libraries' threads say nothing of what failed in them: it is told in our own sentence."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    closed = "Event loop is closed"  # what is left of reading a damaged checkpoint says so, dozens of times
    sys.unraisablehook = lambda what: None if str(what.exc_value) == closed else sys.__unraisablehook__(what)
    sys.excepthook = lambda kind, error, trace: None if str(error) == closed else sys.__excepthook__(kind, error, trace)


def console() -> None:
    """Entry point of the installed command `mrcnn`."""
    hush()
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
