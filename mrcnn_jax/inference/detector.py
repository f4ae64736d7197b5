"""A trained model as a function from images to their detections."""

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args, overload

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mrcnn_jax.checkpoint import BEST, CheckpointStore, run_directory
from mrcnn_jax.compiled_programs import stored
from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.config.validation import LARGEST_BATCH, require_whole
from mrcnn_jax.data.transforms import padded_size
from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.inference.image_inputs import ImageLike, is_one_image, list_images
from mrcnn_jax.inference.program import compiled
from mrcnn_jax.inference.settings import full_names, with_settings
from mrcnn_jax.inference.stream import Pipeline, StreamResult, stream_results
from mrcnn_jax.inference.tiles import require_tiles, stream_tiles
from mrcnn_jax.models.systems import init_variables, make_model
from mrcnn_jax.run_description import edited_experiment, newest_description
from mrcnn_jax.runtime import enable_compilation_cache
from mrcnn_jax.structures import DatasetInfo, Predictions
from mrcnn_jax.weights.folder import EXPORTED, Weights, is_model_folder, read_model_folder
from mrcnn_jax.weights.locate import locate

CheckpointChoice = Literal["best", "newest"]
"""Checkpoint of a training run: the best one if the run keeps it (train.keep_best), or always the newest."""


class Detector:
    """Detects objects in images; ``load`` makes one.

    Two programs are compiled, one for landscape and one for portrait images; or one for each padded size if
    ``data.padding_divisor`` is set, of which ``MAX_PROGRAMS`` stay in memory. Test-time augmentation
    compiles more (``inference.tta``).

    Attributes:
        experiment: configuration that the model was trained with, and its settings.
        info: classes and keypoints of the data set that it was trained on.
        variables: of the model, on the device.
        programs: directory in which compiled programs are stored, if any.
        single_device: one device computes, also where an evaluation could use all.
    """

    single_device = False

    def __init__(
        self, experiment: Experiment, info: DatasetInfo, variables: dict[str, Any], programs: Any = None
    ):
        self.experiment, self.info, self.variables = experiment, info, variables
        self.programs = programs

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class id; a region proposal network alone finds objects of class 0, "object"."""
        return self.info.category_names if self.experiment.model.tasks else ("object",)

    @overload
    def __call__(self, images: ImageLike, *, batch_size: int = 1) -> Detections: ...

    @overload
    def __call__(self, images: Iterable[ImageLike], *, batch_size: int = 1) -> Iterator[Detections]: ...

    def __call__(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 1
    ) -> Detections | Iterator[Detections]:
        """Detects objects in one image, or in many.

        Args:
            images: an image: a uint8 RGB array [H, W, 3], a Pillow image or a file; or many: a folder (with
                the folders below), a pattern such as "photos/**/*.jpg", or an iterable of images, which is
                read as far as it is needed. Files and Pillow images are turned upright as their EXIF
                orientation says.
            batch_size: images of equal padded size that are computed at once, where there are many.

        Returns:
            The detections of one image in its own pixels, best first; of many images an iterator over the
            detections of each, in their order.

        Raises:
            InputError: an image cannot be read, or an array is not uint8 of shape [H, W, 3].
        """
        if not is_one_image(images):
            return self._each(self.stream(images, batch_size=batch_size))
        pipeline = Pipeline(self)
        return pipeline.start([pipeline.prepare(images)])()[0]

    def stream(
        self, images: Iterable[ImageLike] | str | os.PathLike, *, batch_size: int = 1, tile: int = 0,
        tile_overlap: float = 0.25,
    ) -> Iterator[StreamResult]:  # fmt: skip
        """Detects objects in many images; those that cannot be read do not stop the others.

        The next images are decoded while the device computes; large ones with ``tile`` one at a time.

        Args:
            images: a folder, a pattern or an iterable, as for a call.
            batch_size: images (or tiles) of equal padded size that are computed at once. A batch that does
                not fill up is completed with empty images, so that nothing is compiled again.
            tile: side in pixels of the tiles in which images are seen (``inference.tiles``), for small
                objects in large images; 0 takes images whole.
            tile_overlap: share of its side that a tile has in common with the next.

        Returns:
            An iterator over, for each image in order, what was given, its pixels, and its detections or an
            InputError.

        Raises:
            InputError: at once, for a batch size below 1 or beyond 4,096, tiles or an overlap that are
                impossible, an array or a Pillow image in place of many images, or a folder without images.
        """
        require_whole("the batch size", batch_size, 1, LARGEST_BATCH)
        if tile != 0:
            require_tiles(tile, tile_overlap)
        pipeline, images = Pipeline(self, batch_size), list_images(images)
        if tile:
            return stream_tiles(pipeline, images, tile, tile_overlap)
        return stream_results(pipeline, images)

    def with_settings(self, **settings: Any) -> "Detector":
        """Returns this detector with other settings; it shares the weights.

        Args:
            **settings: ``score_threshold``, ``max_detections``, ``nms_iou``, ``class_agnostic_nms`` and
                ``soft_nms`` (as in ``config.BoxHeadConfig``), ``short_edge`` and ``long_edge`` in pixels,
                ``tta_scales`` and ``tta_flip`` (as in ``config.EvaluationConfig``), and ``dtype``. ``load``
                takes further ones.

        Raises:
            InputError: a setting does not exist, or a value is not allowed.
        """
        experiment = with_settings(self.experiment, full_names(settings))
        return Detector(experiment, self.info, self.variables, self.programs)

    def program(self, all_devices: bool = False) -> Callable[..., Predictions]:
        """Returns the model as a function: (variables, images, sizes) -> Predictions.

        Args:
            all_devices: as for ``inference.program.compiled``.
        """
        return compiled(self.experiment.model, self.experiment.train.dtype, all_devices, self.programs)

    def warm_up(self, batch_size: int = 1) -> None:
        """Compiles the programs for landscape and portrait images, so that the first image is not slow.

        With ``data.padding_divisor``, images of other sizes still compile programs of their own.
        """
        for portrait in (False, True):
            size = padded_size(self.experiment.data, portrait)
            list(self.stream([np.zeros((*size, 3), np.uint8)], batch_size=batch_size))

    def _each(self, results: Iterator[StreamResult]) -> Iterator[Detections]:
        for result in results:
            if result.error is not None:
                raise result.error
            yield result.detections  # ty: ignore[invalid-yield]


def load(
    directory: str | os.PathLike, settings: Mapping[str, Any] = MappingProxyType({}), *,
    checkpoint: CheckpointChoice = "best", store_programs: bool = False,
) -> Detector:  # fmt: skip
    """Loads the detector of a training run, from its best or newest checkpoint, or of other weights.

        detector = load("torchvision/maskrcnn_resnet50_fpn_v2")

    Compiled programs are kept on disk for later processes (``runtime.enable_compilation_cache``).

    Args:
        directory: of the run, of imported weights, or of a pushed or exported model; or a name of published
            weights (`mrcnn zoo` lists them), the address of a file of weights, or hf://owner/name. Those are
            downloaded once.
        settings: values by name that replace those of the experiment, such as
            ``{"model.box.score_threshold": 0.3, "data.short_edge_test": 640}``; those of
            ``inference.settings.SETTINGS`` may change.
        checkpoint: of a run that keeps its best one (train.keep_best), "best" or "newest"; a note on stderr
            says so where the best one is older. Without a best one, the newest is loaded in any case.
        store_programs: keep the programs traced and compiled (``StoredFunction``), which makes later starts
            faster; not for processes that replace functions at run time.

    Returns:
        A detector with the settings; of an exported model an ``ExportedDetector``, which is called likewise.

    Raises:
        InputError: the directory holds no weights, or only a part of a model, such as a backbone; or a
            setting is not allowed.
    """
    if not isinstance(directory, str | os.PathLike):
        raise InputError(f"load takes a directory or a name of weights, not {directory!r:.50}")
    if checkpoint not in get_args(CheckpointChoice):
        raise InputError(f"the checkpoint must be best or newest, not {checkpoint!r:.50}")
    directory = locate(directory)
    if (run_directory(directory) / EXPORTED).exists():
        from mrcnn_jax.inference.export.detector import load_exported  # here, as it imports this module

        return load_exported(directory, settings)
    if described := newest_description(directory):  # mistakes are found before arrays are read
        with_settings(described[1].experiment, settings)
    cache = enable_compilation_cache()
    weights = read_weights(directory, checkpoint)
    experiment = with_settings(weights.experiment, settings)
    if edited := edited_experiment(directory):
        print_warning(edited)
    programs = cache / "programs" if cache and store_programs and jax.process_count() == 1 else None
    held, model = flatten_dict(weights.variables, sep="/").keys(), weights.experiment.model
    missing = sorted(stored(programs, f"arrays {model}", lambda: expected_arrays(model)) - held)
    if missing:
        raise InputError(
            f"{directory} holds a part of a model only, such as a backbone, that training can start from "
            f"(--train.init-from); {len(missing)} arrays are missing, the first is {missing[0]}"
        )
    return Detector(experiment, weights.info, jax.device_put(weights.variables), programs)


def print_warning(message: object) -> None:
    """Prints a warning to stderr."""
    print(f"Warning: {printable(message)}", file=sys.stderr, flush=True)


def read_weights(directory: str | os.PathLike, checkpoint: CheckpointChoice = "best") -> Weights:
    """Reads the best checkpoint of a training run that keeps it, else the newest, or other weights that
    ``load`` accepts.

    Args:
        directory: as for ``load``.
        checkpoint: likewise.

    Raises:
        InputError: the directory holds none.
    """
    directory = require_weights(directory)
    if is_model_folder(directory):
        return read_model_folder(directory)
    saved, newest = None, newest_description(directory)
    keeps_best = newest is None or newest[1].experiment.train.keep_best  # else best/ is of an earlier start
    for folder in (BEST, "checkpoints") if checkpoint == "best" and keeps_best else ("checkpoints",):
        path = run_directory(directory) / folder
        if saved is None and path.is_dir():
            with CheckpointStore(path, read_only=True) as checkpoints:
                saved = checkpoints.restore_latest(print_warning)
    if saved is None:
        raise InputError(f"{directory} holds no complete checkpoint yet")
    if newest and newest[0] != saved.step and saved.path.parent.name == BEST:
        note = (f"{directory}: loading step {saved.step:,}, the best; checkpoint newest would load step "
                f"{newest[0]:,}")  # fmt: skip
        print(f"Note: {printable(note)}.", file=sys.stderr, flush=True)
    return Weights(saved.experiment, saved.info, saved.variables)


def require_weights(directory: str | os.PathLike) -> str | os.PathLike:
    """Returns the directory of weights that ``load`` accepts, which are downloaded if need be.

    Raises:
        InputError: the directory holds none; the message names what it is instead.
    """
    directory = locate(directory)
    path = run_directory(directory)
    if is_model_folder(directory) or (path / "checkpoints").is_dir():
        return directory
    if (path / EXPORTED).exists():
        raise InputError(f"{directory} is an exported program: give the run or weights that it is made of")
    needed = "give the directory of a training run, or weights by name (`mrcnn zoo` lists them)"
    if (path / "metadata.json").exists():
        raise InputError(f"{directory} is a data set and holds no checkpoints: {needed}")
    if path.exists() and not path.is_dir():
        command = f"{shlex.join(['mrcnn', 'import-weights', str(directory)])} --out weights/{path.stem}"
        raise InputError(
            f"{directory} is a file and holds no checkpoints: {needed}; if it holds weights of another "
            f"library, `{command}` makes a directory of them"
        )
    raise InputError(f"{directory} holds no checkpoints: {needed}")


def expected_arrays(model: ModelConfig) -> set[str]:
    """Returns the paths of all arrays of a model's variables, such as "params/backbone/stem/kernel"."""
    variables = jax.eval_shape(lambda: init_variables(make_model(model), jax.random.key(0)))
    return set(flatten_dict(variables, sep="/"))
