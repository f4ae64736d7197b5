"""Conversion of a folder of images and annotations, in any known format, into a prepared data set."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_jax.data.catalog import DATA_FOLDER
from mrcnn_jax.data.dataset import is_prepared
from mrcnn_jax.data.formats import cityscapes, coco, coco_layout
from mrcnn_jax.errors import InputError


class Format(NamedTuple):
    """A data set format that is recognised by its layout."""

    name: str
    layout: str  # for messages
    recognises: Callable[[Path], bool]
    prepare: Callable[..., dict[str, Any]]  # of folder, out, progress, overwrite, options; reports by split
    options: tuple[str, ...] = ()


FORMATS = (
    Format("Cityscapes", "gtFine and leftImg8bit", cityscapes.recognises, cityscapes.prepare),
    Format(
        "COCO", "annotations/*.json", coco_layout.recognises, coco.prepare,
        options=("validation_images", "keypoints", "name"),
    ),
)  # fmt: skip
"""Known formats; the first that recognises a folder prepares it."""


class Prepared(NamedTuple):
    """A prepared data set, and what was found while preparing it."""

    directory: Path
    reports: dict[str, Any]  # of each split, for ``str``; empty if the folder was a prepared set already


def prepare(
    folder: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    splits: Mapping[str, tuple[str | os.PathLike, str | os.PathLike]] | None = None,
    validation_images: int = 0,
    keypoints: bool = False,
    name: str | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> Prepared:
    """Prepares a data set for training: its format is recognised by the layout of the folder.

    Args:
        folder: a folder in COCO format, the root of Cityscapes, or a prepared set, which is left as it is.
        out: the directory to write; by default data/<name of the folder>.
        splits: image folder and COCO annotation file of "train" and "validation", if not found by name.
        validation_images: COCO with one annotation file: number of images held out for validation, the
            last by id.
        keypoints: COCO: prefer person_keypoints_*.json to instances_*.json.
        name: COCO: name of the data set; by default that of the folder.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared set at ``out``.

    Returns:
        Where the prepared set is, and a report of each split.

    Raises:
        InputError: the format is unknown, an option does not apply to it, or the input cannot be trusted.
            Nothing is written then.
    """
    folder = Path(folder)
    if is_prepared(folder):
        return Prepared(folder, {})
    out = Path(out) if out else DATA_FOLDER / folder.absolute().name
    common = {"progress": progress, "overwrite": overwrite}
    if splits:
        if "train" not in splits:
            raise InputError(f"annotations are given for {', '.join(splits)} but not for the split train")
        given = {split: coco_layout.CocoSplit(*map(Path, paths)) for split, paths in splits.items()}
        return Prepared(out, coco.prepare(given, out, name=name, **common))
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    format_ = next((known for known in FORMATS if known.recognises(folder)), None)
    if format_ is None:
        layouts = ", ".join(f"{known.name} ({known.layout})" for known in FORMATS)
        raise InputError(f"{folder} is in no known format: {layouts}")
    options = {"validation_images": validation_images, "keypoints": keypoints, "name": name}
    options = {option: value for option, value in options.items() if value}
    if unknown := [option for option in options if option not in format_.options]:
        raise InputError(f"{folder} is laid out like {format_.name}, to which {unknown[0]} does not apply")
    return Prepared(out, format_.prepare(folder, out, **options, **common))
