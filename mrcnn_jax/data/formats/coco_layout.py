"""Layouts of folders in COCO format: the annotation file and image folder of each split."""

import os
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import InputError

_EXPLICIT = "name them with --train IMAGES ANNOTATIONS and --validation IMAGES ANNOTATIONS"
_PATTERNS = ("annotations/*.json", "*.json", "*/*.json")


class CocoSplit(NamedTuple):
    """Files of a split."""

    images: Path  # folder
    annotations: Path
    part: slice = slice(None)  # of the file's images, in the order of their ids


def recognises(folder: str | os.PathLike) -> bool:
    """Returns whether a folder may hold annotation files in COCO format."""
    return bool(_annotation_files(Path(folder)))


def find_splits(
    folder: str | os.PathLike, validation_images: int = 0, *, keypoints: bool = False
) -> dict[str, CocoSplit]:
    """Finds the annotation files and image folders of the usual layouts.

    Annotation files are ``annotations/*.json``, else ``*.json``, else ``*/*.json``; the name of the file,
    or of the folder it shares with its images, contains "train" or "val". Images are in a folder named like
    the last word of the annotation file's name (train2017), like the split (train, val, ...), in
    ``images``, in such folders in ``images``, or beside the annotation file.

    Args:
        folder: the data set.
        validation_images: if there is one annotation file only, this many images, the last by id, become the
            split "validation".
        keypoints: prefer person_keypoints_* to instances_*.

    Raises:
        InputError: files or folders are ambiguous; the message says how to name them.
    """
    folder = Path(folder)
    if validation_images < 0:
        raise InputError(f"validation_images is {validation_images}, but must be 0 or more")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    found = _annotation_files(folder)
    if len(found) > 1:
        kinds = ("person_keypoints", "instances") if keypoints else ("instances", "person_keypoints")
        kind = next((kind for kind in kinds if any(path.name.startswith(kind) for path in found)), "")
        found = [path for path in found if path.name.startswith(kind)]
    if len(found) == 1:
        (path,) = found
        images = _image_folder(folder, path, _split_of(folder, path) or "train")
        if not validation_images:
            return {"train": CocoSplit(images, path)}
        parts = {"train": slice(None, -validation_images), "validation": slice(-validation_images, None)}
        return {split: CocoSplit(images, path, part) for split, part in parts.items()}
    by_split = {s: [path for path in found if _split_of(folder, path) == s] for s in ("train", "validation")}
    if len(by_split["train"]) != 1 or len(by_split["validation"]) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        ambiguous = f"the annotation files of the splits are ambiguous (JSON files: {names})"
        raise InputError(f"{folder}: {ambiguous}; {_EXPLICIT}")
    if validation_images and by_split["validation"]:
        raise InputError(f"{folder} has validation annotations of its own, so validation_images must be 0")
    files = {split: paths[0] for split, paths in by_split.items() if paths}
    return {split: CocoSplit(_image_folder(folder, path, split), path) for split, path in files.items()}


def _annotation_files(folder: Path) -> list[Path]:
    return next(filter(None, (sorted(folder.glob(pattern)) for pattern in _PATTERNS)), [])


def _split_of(folder: Path, path: Path) -> str | None:
    """Returns the split named by a file, or else by its subfolder; None for both or neither ("trainval")."""
    for name in reversed(path.relative_to(folder).with_suffix("").parts):
        train, validation = "train" in name.lower(), "val" in name.lower()
        if train or validation:
            return None if train and validation else "train" if train else "validation"
    return None


def _image_folder(folder: Path, annotations: Path, split: str) -> Path:
    last_word = annotations.stem.split("_")[-1]
    names = {"train": ["train", "train2017"], "validation": ["val", "valid", "validation", "val2017"]}[split]
    candidates = [root / name for root in (folder, folder / "images") for name in (last_word, *names)]
    candidates.append(folder / "images")
    if annotations.parent.parent == folder and annotations.parent.name != "annotations":
        candidates.insert(0, annotations.parent)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(f"{folder}: no image folder found for {annotations.name}; {_EXPLICIT}")
