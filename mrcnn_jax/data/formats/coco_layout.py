"""Layouts of folders in COCO format: the annotation file and image folder of each split."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.data.formats.foreign_files import COCO, json_kind, lists_no_image
from mrcnn_jax.data.image_files import image_files_in, walk
from mrcnn_jax.errors import InputError

ADVICE = "name them with --train IMAGES ANNOTATIONS and --validation IMAGES ANNOTATIONS"
_DEPTH = 3  # levels of folders that are searched for annotation files
_SPLITS = {
    "train": re.compile("train"),
    "validation": re.compile("(?<![a-z])e?val(id|idation|set)?(?![a-z])|trainval"),
    "test": re.compile("(?<![a-z])test(ing|set)?(?![a-z])"),
}
_IMAGE_FOLDERS = {
    "train": ["train", "train2017"],
    "validation": ["val", "valid", "validation", "val2017"],
    "test": ["test", "test2017"],
}


_USUAL_FOLDERS = ("images", "data", "jpegimages", "img", "imgs")


class HeldOut(NamedTuple):
    """One side of a file of which images are drawn for validation."""

    count: int  # number of images drawn
    validation: bool  # the drawn images, or else the others
    seed: int = 0


class CocoSplit(NamedTuple):
    """Files of a split."""

    images: Path  # folder in and below which the images are
    annotations: Path
    part: HeldOut | None = None  # None for all images of the file


def recognises(folder: Path) -> bool:
    """Returns whether a folder may hold annotation files in COCO format, or a path is such a file."""
    return bool(_annotation_files(Path(folder)))


def find_splits(
    folder: str | os.PathLike, validation_images: int = 0, *, keypoints: bool = False, seed: int = 0
) -> dict[str, CocoSplit]:
    """Finds the annotation files and image folders of the usual layouts.

    Annotation files are those in a folder ``annotations``, else those in the folder itself, else those one or
    two levels below; only JSON files that look like COCO count. The name of the file, or of the folder it
    shares with its images, contains "train", "val" or "test". Images are in a folder named like the last word
    of the annotation file's name (train2017), like the split (train, val, ...), in a usual folder (images,
    data, JPEGImages), in such folders in those, or anywhere below the folder.

    Args:
        folder: the data set, or its only annotation file.
        validation_images: number of images that are drawn for the split "validation" if it has no file.
        keypoints: prefer person_keypoints_* to instances_*.
        seed: of the draw.

    Raises:
        InputError: files are ambiguous; the message says how to name them.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError(f"{folder} is not a folder")
    found = _annotation_files(folder)
    if len(found) > 1:
        kinds = ("person_keypoints", "instances") if keypoints else ("instances", "person_keypoints")
        kind = next((kind for kind in kinds if any(path.name.startswith(kind) for path in found)), "")
        found = [path for path in found if path.name.startswith(kind)]
    root = folder if folder.is_dir() else folder.parent
    if folder.is_file() and root.name.lower() == "annotations":
        root = root.parent
    if len(found) == 1:
        split = _split_of(root, found[0]) or "train"
        splits = {"train": CocoSplit(_image_folder(root, found[0], split), found[0])}
    else:
        by_split = {split: [path for path in found if _split_of(root, path) == split] for split in _SPLITS}
        if len(by_split["train"]) != 1 or any(len(paths) > 1 for paths in by_split.values()):
            raise InputError(f"{folder}: {_ambiguity(root, found)}; {ADVICE}")
        files = {split: paths[0] for split, paths in by_split.items() if paths}
        files = {s: path for s, path in files.items() if s == "train" or not lists_no_image(path)}
        splits = {s: CocoSplit(_image_folder(root, path, s), path) for s, path in files.items()}
    return hold_out_validation(splits, validation_images, seed, folder)


def hold_out_validation(
    splits: dict[str, CocoSplit], count: int, seed: int, source: Path
) -> dict[str, CocoSplit]:
    """Adds a split "validation" of images drawn from those of "train", unless ``count`` is 0.

    Raises:
        InputError: there is a validation split already, or the number is negative.
    """
    if count < 0:
        raise InputError(f"validation_images is {count}, but must be 0 or more")
    if seed < 0:
        raise InputError(f"seed is {seed}, but must be 0 or more")
    if not count:
        return splits
    if "validation" in splits:
        raise InputError(f"{source} has validation annotations of its own, so validation_images must be 0")
    sides = {
        split: splits["train"]._replace(part=HeldOut(count, split == "validation", seed))
        for split in ("train", "validation")
    }
    return sides | {split: files for split, files in splits.items() if split != "train"}


def unused_files(folder: str | os.PathLike, splits: dict[str, CocoSplit]) -> list[str]:
    """Returns notes about annotation files in a folder that are not used."""
    folder, used = Path(folder), {files.annotations for files in splits.values()}
    if not folder.is_dir():
        return []
    others = [path for paths in _json_files(folder) for path in paths if path not in used]
    notes = []
    if others:
        notes.append(f"{len(others):,} other JSON files are not used ({_names(folder, others)})")
    if len(used) == 1 and (split := _split_of(folder, next(iter(used)))) not in (None, "train"):
        only = f"{_names(folder, used)} is the only annotation file"
        notes.append(f"{only}, so the training split is made of it although its name says {split}")
    return notes


def _annotation_files(folder: Path) -> list[Path]:
    """Returns the files of the first level with COCO files, or else with files of an unknown kind."""
    if folder.is_file():
        return [folder] if folder.suffix.lower() == ".json" else []
    unknown: list[Path] = []
    for paths in _json_files(folder):
        kinds = {path: json_kind(path) for path in paths}
        if found := [path for path, kind in kinds.items() if kind == COCO]:
            return found
        unknown = unknown or [path for path, kind in kinds.items() if kind is None]
    return unknown


def _json_files(folder: Path) -> list[list[Path]]:
    """Returns the JSON files in ``annotations``, in the folder itself, and one and two levels below."""
    levels: list[list[Path]] = [[] for _ in range(_DEPTH + 1)]
    for path in walk(folder, _DEPTH):
        if path.suffix.lower() == ".json":
            above = path.relative_to(folder).parts[:-1]
            first = len(above) == 1 and above[0].lower() == "annotations"
            levels[0 if first else len(above) + 1].append(path)
    return levels


def _split_of(folder: Path, path: Path) -> str | None:
    """Returns the split named by a file, or else by its subfolder; None for none or several ("trainval")."""
    for name in reversed(path.relative_to(folder).with_suffix("").parts):
        words = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
        if named := [split for split, pattern in _SPLITS.items() if pattern.search(words)]:
            return named[0] if len(named) == 1 else None
    return None


def _image_folder(folder: Path, annotations: Path, split: str) -> Path:
    """Returns the most likely folder of the images of an annotation file, at last the whole folder."""
    names = [annotations.stem.split("_")[-1].lower(), *_IMAGE_FOLDERS[split]]
    root = annotations.parent
    if root != folder and (root.name.lower() == "annotations" or next(image_files_in(root), None) is None):
        root = root.parent
    subfolders = _subfolders(root)
    usual = [subfolders[name] for name in _USUAL_FOLDERS if name in subfolders]
    if root == annotations.parent and root != folder:  # a folder of the split
        return usual[0] if usual else root
    for place in (subfolders, *map(_subfolders, usual)):
        if chosen := next((place[name] for name in names if name in place), None):
            return chosen
    return usual[0] if usual else root


def _subfolders(folder: Path) -> dict[str, Path]:
    """Returns the folders in a folder by their names in lower case."""
    return {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}


def _ambiguity(folder: Path, found: list[Path]) -> str:
    return f"the annotation files of the splits are ambiguous (JSON files: {_names(folder, found) or 'none'})"


def _names(folder: Path, paths) -> str:
    names = sorted(str(path.relative_to(folder)) for path in paths)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
