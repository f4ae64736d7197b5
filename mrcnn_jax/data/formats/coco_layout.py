"""A folder in COCO format -> a prepared data set: which annotation file and which images belong to which split."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.data import dataset as records
from mrcnn_jax.data.formats.coco import CocoFile, Report
from mrcnn_jax.errors import InputError


class Source(NamedTuple):
    """Where the images and annotations of a split lie."""

    images: Path
    annotations: Path
    part: slice = slice(None)  # which of the file's images, in the order of their ids


EXPLICIT = "say where they are with --train IMAGES ANNOTATIONS and --validation IMAGES ANNOTATIONS"


def find_splits(
    folder: str | os.PathLike, validation_images: int = 0, *, keypoints: bool = False
) -> dict[str, Source]:
    """Finds the annotation files and image folders of the usual layouts.

    Annotation files are ``annotations/*.json``, else ``*.json``, else ``*/*.json``; the name of the file, or of the
    folder it shares with its images, says "train" or "val". Images lie in a folder called like the last word of
    the annotation file's name (train2017), like the split (train, val, ...), in ``images``, in such folders in
    ``images``, or beside the annotation file.

    Args:
        folder: the data set.
        validation_images: where there is one annotation file only, this many images, the last by id, become the split
            "validation".
        keypoints: prefer person_keypoints_* to instances_*.

    Raises:
        InputError: files or folders cannot be told apart; the message says how to name them.
    """
    folder = Path(folder)
    if validation_images < 0:
        raise InputError(f"validation_images is {validation_images}, but must be 0 or more.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.")
    found = next(filter(None, (sorted(folder.glob(g)) for g in ("annotations/*.json", "*.json", "*/*.json"))), [])
    if len(found) > 1:
        kinds = ("person_keypoints", "instances") if keypoints else ("instances", "person_keypoints")
        preferred = (kind for kind in kinds if any(path.name.startswith(kind) for path in found))
        kind = next(preferred, "")
        found = [path for path in found if path.name.startswith(kind)]
    if len(found) == 1:
        (path,) = found
        images = _image_folder(folder, path, _split_of(folder, path) or "train")
        if not validation_images:
            return {"train": Source(images, path)}
        held_out = {"train": slice(None, -validation_images), "validation": slice(-validation_images, None)}
        return {split: Source(images, path, part) for split, part in held_out.items()}
    by_split = {s: [path for path in found if _split_of(folder, path) == s] for s in ("train", "validation")}
    if len(by_split["train"]) != 1 or len(by_split["validation"]) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise InputError(f"{folder}: cannot tell the annotation files of the splits (JSON files: {names}); {EXPLICIT}.")
    if validation_images and by_split["validation"]:
        raise InputError(f"{folder}: it has validation annotations of its own, so validation_images must be 0.")
    return {s: Source(_image_folder(folder, paths[0], s), paths[0]) for s, paths in by_split.items() if paths}


def _split_of(folder: Path, path: Path) -> str | None:
    """The split that a file's name, or else its subfolder's, speaks of; None for both or neither ("trainval")."""
    for name in reversed(path.relative_to(folder).with_suffix("").parts):
        name = name.lower()
        train, validation = "train" in name, "val" in name
        if train or validation:
            return None if train and validation else "train" if train else "validation"
    return None


def _image_folder(folder: Path, annotations: Path, split: str) -> Path:
    last_word = annotations.stem.split("_")[-1]
    names = {"train": ["train", "train2017"], "validation": ["val", "valid", "validation", "val2017"]}[split]
    candidates = [folder / name for name in (last_word, *names)]
    candidates += [folder / "images" / name for name in (last_word, *names)]
    candidates += [folder / "images"]
    if annotations.parent.parent == folder and annotations.parent.name != "annotations":
        candidates.insert(0, annotations.parent)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(f"{folder}: no image folder found for {annotations.name}; {EXPLICIT}.")


def prepare(
    splits: str | os.PathLike | Mapping[str, Source],
    out: str | os.PathLike,
    *,
    validation_images: int = 0,
    keypoints: bool = False,
    name: str | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> dict[str, Report]:
    """Converts a folder in COCO format into a prepared data set.

    Args:
        splits: the folder, searched by ``find_splits``, or where each split lies.
        out: the directory to write.
        validation_images: see ``find_splits``; only for a folder.
        keypoints: see ``find_splits``; only for a folder.
        name: what to call the data set; by default as the folder or the output directory.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared data set at ``out``.

    Returns:
        What was kept, left out and mended, for each split.

    Raises:
        InputError: the input cannot be trusted; nothing is written.
    """
    if not isinstance(splits, Mapping):
        name = name or Path(splits).absolute().name
        splits = find_splits(splits, validation_images, keypoints=keypoints)
    name = name or Path(out).absolute().name
    files = {split: CocoFile(*source, name=name) for split, source in splits.items()}
    (first, info), *others = ((split, file.info) for split, file in files.items())
    for split, other in others:
        if other != info:
            raise InputError(f"The categories of the splits '{first}' and '{split}' differ: they must be the same.")
    records.write(out, info, files, progress=progress, overwrite=overwrite)
    for split, file in files.items():
        file.report.name = split
    return {split: file.report for split, file in files.items()}
