"""Layouts of folders in COCO format: the annotation file and image folder of each split."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.data.formats.foreign_files import COCO, json_kind, lists_no_image
from mrcnn_jax.data.formats.holdout import SplitSample, require_sampling
from mrcnn_jax.data.formats.listing import Listing
from mrcnn_jax.data.formats.split_names import SPLITS, split_of
from mrcnn_jax.data.image_files import image_files_in, walk
from mrcnn_jax.errors import InputError
from mrcnn_jax.messages import listed

ADVICE = "name them with --train IMAGES ANNOTATIONS and --validation IMAGES ANNOTATIONS"
_DEPTH = 3  # levels of folders that are searched for annotation files
_IMAGE_FOLDERS = {
    "train": ["train", "train2017"],
    "validation": ["val", "valid", "validation", "val2017"],
    "test": ["test", "test2017"],
}


_USUAL_FOLDERS = ("images", "data", "jpegimages", "img", "imgs")


class CocoSplit(NamedTuple):
    """Files of a split."""

    images: Path | None  # folder in and below which the images are, if known
    annotations: Path
    part: SplitSample | None = None  # None for all images of the file
    listing: Listing | None = None  # of another format; None for a file in COCO's

    @property
    def key(self) -> object:
        """Identifies the listing, which several splits may be sampled from."""
        return self.annotations if self.listing is None else id(self.listing)


def recognises(folder: Path, certainly: bool = True) -> bool:
    """Returns whether a folder, or a file, holds annotations in COCO format, or else may be meant as that."""
    files = _annotation_files(Path(folder))
    return any(json_kind(path) == COCO for path in files) if certainly else bool(files)


def find_splits(folder: str | os.PathLike, *, keypoints: bool = False) -> dict[str, CocoSplit]:
    """Finds the annotation files and image folders of the usual layouts.

    Annotation files are those in a folder ``annotations``, else those in the folder itself, else those one or
    two levels below; only JSON files that look like COCO count. The name of the file, or of the folder it
    shares with its images, contains "train", "val" or "test". Images are in a folder named like the last word
    of the annotation file's name (train2017), like the split (train, val, ...), in a usual folder (images,
    data, JPEGImages), in such folders in those, or anywhere below the folder.

    Args:
        folder: the data set, or its only annotation file.
        keypoints: prefer person_keypoints_* to instances_*.

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
        split = split_of(root, found[0]) or "train"
        splits = {"train": CocoSplit(_image_folder(root, found[0], split), found[0])}
    else:
        by_split = {split: [path for path in found if split_of(root, path) == split] for split in SPLITS}
        if len(by_split["train"]) != 1 or any(len(paths) > 1 for paths in by_split.values()):
            raise InputError(f"{folder}: {_ambiguity(root, found)}; {ADVICE}")
        files = {split: paths[0] for split, paths in by_split.items() if paths}
        files = {s: path for s, path in files.items() if s == "train" or not lists_no_image(path)}
        splits = {s: CocoSplit(_image_folder(root, path, s), path) for s, path in files.items()}
    return splits


def sample_splits(
    splits: dict[str, CocoSplit],
    source: Path,
    *,
    validation_images: int = 0,
    split: Sequence[float] = (),
    group: str | None = None,
    seed: int = 0,
) -> dict[str, CocoSplit]:
    """Divides the images of "train" at random, if asked; see ``data.prepare.prepare``.

    Raises:
        InputError: there is a split of a sampled name already, or as ``require_sampling``.
    """
    require_sampling(validation_images, split, group, seed)
    if not (split or validation_images):
        return splits
    amounts = tuple(zip(("validation", "test"), split[1:] or (validation_images,), strict=False))
    for name, _ in amounts:
        if name in splits:
            option, none = ("split", "left out") if split else ("validation_images", "0")
            raise InputError(f"{source} has {name} annotations of its own, so {option} must be {none}")
    parts = [SplitSample(name, amounts, seed, group) for name in ("train", *dict(amounts))]
    sampled = {part.split: splits["train"]._replace(part=part) for part in parts}
    return sampled | {name: files for name, files in splits.items() if name != "train"}


def unused_files(folder: str | os.PathLike, splits: dict[str, CocoSplit]) -> list[str]:
    """Returns notes about annotation files in a folder that are not used."""
    folder, used = Path(folder), {files.annotations for files in splits.values()}
    if not folder.is_dir():
        return []
    others = [path for paths in _json_files(folder) for path in paths if path not in used]
    notes = []
    if others:
        notes.append(f"{len(others):,} other JSON files are not used ({_names(folder, others)})")
    if len(used) == 1 and (split := split_of(folder, next(iter(used)))) not in (None, "train"):
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
    return listed(sorted(str(path.relative_to(folder)) for path in paths), 5)
