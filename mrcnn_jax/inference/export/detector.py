"""An exported detector with the interface of a live one."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mrcnn_jax.config import Experiment
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import Detector
from mrcnn_jax.inference.export import onnx, stablehlo
from mrcnn_jax.inference.export.folder import Manifest, read_manifest
from mrcnn_jax.inference.settings import full_names, with_settings
from mrcnn_jax.runtime import enable_compilation_cache
from mrcnn_jax.structures import DatasetInfo, Predictions
from mrcnn_jax.weights.folder import read_description, read_model_folder

_HOST = (
    "data.threads", "evaluation.images_per_device", "evaluation.max_detections", "evaluation.pictures",
    "evaluation.picture_score", "model.mask.threshold", "model.conventions.mask_paste",
    "model.conventions.keypoint_score",
)  # fmt: skip
"""Settings of what happens outside of the programs."""
_ANY_SIZE = ("data.short_edge_test", "data.long_edge", "data.padding_divisor")
"""Settings that a program for images of any size leaves open."""


class ExportedDetector(Detector):
    """Detects with the programs of an exported folder; ``load`` makes one.

    One device computes; images beyond the programs' batch are computed one batch after the other.

    Args:
        experiment: of the detector as it was exported.
        info: its classes.
        variables: weights that the programs take, if they do.
        manifest: of the folder.
        read: returns the program, of (variables, images, sizes), of images of a padded size.
        settings: by full names, that replace those of the experiment.
    """

    single_device = True

    def __init__(
        self, experiment: Experiment, info: DatasetInfo, variables: dict[str, Any], manifest: Manifest,
        read: Callable[[tuple[int, int]], Callable[..., dict[str, Any]]],
        settings: Mapping[str, Any] = MappingProxyType({}),
    ):  # fmt: skip
        super().__init__(_with_settings(experiment, settings, manifest), info, variables)
        self.manifest, self._exported, self._read, self._settings = manifest, experiment, read, settings

    def program(self, all_devices: bool = False) -> Callable[..., Predictions]:
        """Returns the programs as one function: (variables, images, sizes) -> Predictions."""
        box, size = self.experiment.model.box, self.manifest.batch_size

        def predict(variables: dict[str, Any], images: np.ndarray, sizes: np.ndarray) -> Predictions:
            run, count = self._read(images.shape[1:3]), len(images)
            images, sizes = (_complete(array, size) for array in (images, sizes))
            batches = [slice(start, start + size) for start in range(0, count, size)]
            parts = [run(variables, images[batch], sizes[batch]) for batch in batches]
            join = (np if self.manifest.format == "onnx" else jnp).concatenate
            found = {name: join([part[name] for part in parts])[:count] for name in parts[0]}
            if self.experiment.model.tasks:  # settings may have raised the threshold, and lowered the number
                found["valid"] &= found["scores"] > box.score_threshold
                found = {name: array[:, : box.max_detections] for name, array in found.items()}
            return Predictions(**found)

        return predict

    def with_settings(self, **settings: Any) -> "ExportedDetector":
        """Returns this detector with other settings, which the programs do not fix."""
        changed = {**self._settings, **full_names(settings)}
        return ExportedDetector(
            self._exported, self.info, self.variables, self.manifest, self._read, changed
        )


def _complete(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last entry until there are whole batches of a size."""
    return np.pad(array, [(0, -len(array) % size), *[(0, 0)] * (array.ndim - 1)], "edge")


def _with_settings(experiment: Experiment, settings: Mapping[str, Any], manifest: Manifest) -> Experiment:
    """Returns the experiment with other settings; InputError for what the programs fix."""
    changed = with_settings(experiment, settings)
    old, new = experiment.model.box, changed.model.box
    free = set(_HOST)
    free |= set(_ANY_SIZE) if manifest.programs[0].size is None else set()
    free |= {"model.box.score_threshold"} if new.score_threshold >= old.score_threshold else set()
    free |= {"model.box.max_detections"} if new.max_detections <= old.max_detections else set()
    if fixed := [name for name in settings if name not in free]:
        limits = {"model.box.score_threshold": f" below {old.score_threshold:g}",
                  "model.box.max_detections": f" beyond {old.max_detections}"}  # fmt: skip
        raise InputError(
            f"{fixed[0]}{limits.get(fixed[0], '')} is part of an exported program: give it to `mrcnn export`"
        )
    return changed


def load_exported(
    directory: str | os.PathLike, settings: Mapping[str, Any] = MappingProxyType({})
) -> ExportedDetector:
    """Loads an exported detector; see ``inference.detector.load``.

    Raises:
        InputError: the folder is incomplete or damaged, a package is missing, this version of JAX does not
            read it, or a setting is part of the programs.
    """
    folder, manifest = Path(directory), read_manifest(directory)
    experiment, info = read_description(folder)
    _with_settings(experiment, settings, manifest)  # mistakes are found before arrays are read
    files = {program.size: folder / program.file for program in manifest.programs}
    if manifest.format == "onnx":
        variables, program = {}, onnx.read(files[None], experiment.model.box.max_detections)

        def read(size):
            return lambda variables, *arrays: program(*arrays)
    else:
        enable_compilation_cache()
        weights = flatten_dict(read_model_folder(folder).variables, sep="/")
        written_by = manifest.versions.get("jax", "?")
        variables = jax.device_put(weights)
        read = {size: stablehlo.read(file, written_by) for size, file in files.items()}.__getitem__
    return ExportedDetector(experiment, info, variables, manifest, read, settings)
