"""The folder of an exported detector: programs, weights, classes and preprocessing as JSON, a README."""

import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mrcnn_jax.atomic_io import write_json, write_text
from mrcnn_jax.config import Experiment, structure
from mrcnn_jax.data.transforms import STRIDE, image_type
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.export.readme import readme
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights.folder import EXPORTED

LAYOUT = 1
"""Version of the folder's layout."""
Format = Literal["stablehlo", "onnx"]


class Program(NamedTuple):
    """A file with a program; its content is checked before it is used."""

    file: str
    size: tuple[int, int] | None  # height and width of the padded images; None takes any
    bytes: int
    crc32: int


class Manifest(NamedTuple):
    """Content of export.json."""

    format: Format
    layout: int
    batch_size: int  # images of a call
    programs: tuple[Program, ...]
    versions: dict[str, str]  # of what wrote the folder
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]


def is_exported(directory: str | os.PathLike) -> bool:
    """Returns whether a directory is such a folder."""
    return (Path(directory) / EXPORTED).is_file()


def write_manifest(
    folder: Path, format_: Format, experiment: Experiment, info: DatasetInfo, batch_size: int,
    sizes: dict[str, Any], versions: dict[str, str],
) -> None:  # fmt: skip
    """Completes a folder whose programs are written: export.json and README.md.

    Args:
        folder: to complete.
        format_: of the programs.
        experiment: of the detector as it was exported.
        info: its classes.
        batch_size: images of a call.
        sizes: padded height and width of each program's file, None for any.
        versions: of what wrote it.
    """
    programs = [Program(file, size, *_digest(folder / file))._asdict() for file, size in sizes.items()]
    content = {
        "format": format_, "layout": LAYOUT, "batch_size": batch_size, "programs": programs,
        "versions": versions, "classes": info.category_names, "preprocessing": _preprocessing(experiment),
    }  # fmt: skip
    write_json(folder / EXPORTED, content)
    write_text(folder / "README.md", readme(format_, experiment, next(iter(sizes)), batch_size))


def _preprocessing(experiment: Experiment) -> dict[str, Any]:
    data, conventions = experiment.data, experiment.model.conventions
    return {
        "channels": "RGB", "levels": [0, 255], "type": image_type(conventions).__name__,
        "short_edge": data.short_edge_test, "long_edge": data.long_edge,
        "interpolation": conventions.resize, "size_rounding": conventions.size_rounding,
        "padding": "zeros at the right and at the bottom", "multiple_of": data.padding_divisor or STRIDE,
    }  # fmt: skip


def read_manifest(directory: str | os.PathLike) -> Manifest:
    """Reads the description of an exported detector, and checks its programs.

    Raises:
        InputError: a file is missing or damaged, or the folder was written by a later version.
    """
    folder = Path(directory)
    try:
        content = json.loads(read_bytes(folder / EXPORTED))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder / EXPORTED} cannot be read: {reason}") from error
    if isinstance(content, dict) and content.get("layout", LAYOUT) != LAYOUT:
        raise InputError(
            f"{folder} was exported by another version of mrcnn_jax (layout {content['layout']} instead of "
            f"{LAYOUT}): export the detector again"
        )
    manifest = structure(content, Manifest, str(folder / EXPORTED))
    for program in manifest.programs:
        _check(folder, program)
    return manifest


def _check(folder: Path, program: Program) -> None:
    path = folder / program.file
    if not path.is_file():
        raise InputError(f"{folder} is incomplete: it has no {program.file}; copy or export it again")
    if _digest(path) != (program.bytes, program.crc32):
        raise InputError(f"{path} is damaged, or not what was exported: copy or export it again")


def _digest(path: Path) -> tuple[int, int]:
    """Returns the length and the checksum of a file."""
    content = path.read_bytes()
    return len(content), zlib.crc32(content)
