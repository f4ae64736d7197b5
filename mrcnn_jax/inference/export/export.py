"""Exports a detector to a folder that runs without this package, and that ``load`` reads."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from mrcnn_jax.atomic_io import new_folder, require_new_folder, write_json
from mrcnn_jax.config import to_dict
from mrcnn_jax.config.validation import LARGEST_BATCH, require_whole
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.detector import CheckpointChoice, load, print_warning
from mrcnn_jax.inference.export import onnx, stablehlo
from mrcnn_jax.inference.export.folder import Format, is_exported, write_manifest
from mrcnn_jax.inference.tta import is_augmented
from mrcnn_jax.paths import require_local
from mrcnn_jax.run_description import current_versions
from mrcnn_jax.weights.folder import DATASET, EXPERIMENT, Weights, without_paths, write_model_folder

FORMATS = ("stablehlo", "onnx")


def export(
    directory: str | os.PathLike, out: str | os.PathLike, *, format: Format = "stablehlo",
    batch_size: int = 1, settings: Mapping[str, Any] = MappingProxyType({}),
    checkpoint: CheckpointChoice = "best",
) -> Path:  # fmt: skip
    """Exports a detector to a folder.

        mrcnn_jax.export("runs/mine", "exported/mine", format="onnx")
        detections = mrcnn_jax.load("exported/mine")("photo.jpg")

    StableHLO: one program for landscape and one for portrait images, each for CPUs, NVIDIA GPUs and TPUs,
    with the weights beside. Images are padded to one of the two sizes, as with ``data.padding_divisor`` 0.
    ONNX: one graph with the weights, for single images of any size, in float32.

    Args:
        directory: of a run or of imported weights, or another model that ``load`` accepts.
        out: new or empty folder.
        format: "stablehlo" or "onnx".
        batch_size: images of a call, with StableHLO.
        settings: as for ``load``; they become part of the program.
        checkpoint: as for ``load``.

    Returns:
        The folder.

    Raises:
        InputError: the detector cannot be expressed in the format, a package is missing, or the folder is not
            empty or cannot be written.
    """
    require_local(out, "the output")  # also against an empty name, which Path makes the working directory
    out = Path(out)
    _check_arguments(directory, out, format, batch_size)
    detector = load(directory, settings, checkpoint=checkpoint)
    experiment = without_paths(detector.experiment)
    if is_augmented(experiment):
        print_warning("test-time augmentation is not exported: the detector sees each image once")
        plain = replace(experiment.evaluation, tta_scales=(), tta_flip=False)
        experiment = replace(experiment, evaluation=plain)
    if format == "onnx":
        onnx.check(experiment.model)
        experiment = replace(experiment, train=replace(experiment.train, dtype="float32"))
    else:
        experiment = replace(experiment, data=replace(experiment.data, padding_divisor=0))
    with new_folder(out) as partial:
        weights = Weights(experiment, detector.info, jax.device_get(detector.variables))
        _write(partial, format, weights, batch_size)
    return out


def _check_arguments(directory: Any, out: Path, format: str, batch_size: int) -> None:
    if format not in FORMATS:
        raise InputError(f"the format must be one of {', '.join(FORMATS)}, not {format!r}")
    require_whole("the batch size", batch_size, 1, LARGEST_BATCH)
    if format == "onnx":
        onnx.require_package("onnx")
        if batch_size > 1:
            raise InputError(f"ONNX takes one image at a time: leave the batch size {batch_size} out")
    if is_exported(directory):
        raise InputError(f"{directory} is exported already: export what it was made of")
    require_new_folder(out)


def _write(folder: Path, format: Format, weights: Weights, batch_size: int) -> None:
    """Writes the files of a format."""
    experiment, info, versions = weights.experiment, weights.info, current_versions()
    if format == "onnx":
        write_json(folder / EXPERIMENT, to_dict(experiment))
        write_json(folder / DATASET, info._asdict())
        sizes: dict[str, Any] = {onnx.write(folder, experiment.model, weights.variables): None}
        versions["onnx"] = onnx.require_package("onnx").__version__
    else:
        write_model_folder(folder, weights)
        sizes = stablehlo.write(folder, experiment, weights.variables, batch_size)
    write_manifest(folder, format, experiment, info, batch_size, sizes, versions)
