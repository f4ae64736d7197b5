"""Conversion of a folder of images and annotations, in any known format, into a prepared data set."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_jax.data.catalog import DATA_FOLDER
from mrcnn_jax.data.dataset import is_prepared
from mrcnn_jax.data.dataset_writer import check_destination
from mrcnn_jax.data.formats import cityscapes, coco, coco_layout, cvat, labelme, mask_files, voc, yolo
from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.foreign_files import describe_files
from mrcnn_jax.data.formats.holdout import require_sampling
from mrcnn_jax.data.image_files import files_by_suffix
from mrcnn_jax.data.stored_image import Rotation
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_local

ADVICE = "set images aside with --validation-images NUMBER, e.g. a tenth of them, or with --split 0.8 0.1 0.1"
OTHERS = (yolo, voc, cvat, labelme, mask_files)
"""Readers of formats beside COCO's and Cityscapes', in the order in which they are tried."""


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
    split: Sequence[float] = (),
    group: str | None = None,
    seed: int = 0,
    keypoints: bool = False,
    name: str | None = None,
    max_bad: float = 0.05,
    strict: bool = False,
    rotation: Rotation = "auto",
    progress: bool = False,
    overwrite: bool = False,
    notify: Callable[[str], object] | None = None,
) -> Prepared:
    """Prepares a data set for training: its format is recognised by the layout of the folder.

    Args:
        folder: a folder in one of the formats of docs/guides/own_data.md, its only annotation file, or a
            prepared set, which is left as it is and takes no other option.
        out: the directory to write; by default data/<name of the folder>.
        splits: image folder and COCO file of "train", "validation" and "test", if not found by name.
        validation_images: number of images sampled for validation, every class if possible, where it has no
            annotations of its own.
        split: in place of that number, the shares of images sampled for train, validation and perhaps test.
        group: images that stay together; see ``holdout.group_of``.
        seed: of the sampling.
        keypoints: COCO: prefer person_keypoints_*.json to instances_*.json.
        name: of the data set; by default that of the folder.
        max_bad: largest share of a split's images, rounded up, that may be left out as unusable.
        strict: refuse every flaw that would be mended or left out.
        rotation: frame of the annotations of photos with an EXIF orientation: "stored" pixels, "upright", or
            "auto": determined by the annotated size.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared set at ``out``.
        notify: called at once, before the images are read, with a sentence on what is missing or not used.

    Returns:
        Where the prepared set is, and a report of each split.

    Raises:
        InputError: the format is unknown, an option does not apply to it, or the input cannot be trusted.
            Nothing is written then.
    """
    require_local(folder, "the data set")
    folder, notify = Path(folder), notify or (lambda _: None)
    options = {"validation_images": validation_images, "split": tuple(split), "group": group, "seed": seed,
               "keypoints": keypoints, "name": name, "max_bad": max_bad, "strict": strict,
               "rotation": rotation}  # fmt: skip
    options = {option: value for option, value in options.items() if value != _DEFAULTS.get(option)}
    if is_prepared(folder):
        _refuse_options(folder, [*options, *["overwrite"] * overwrite, *(splits or ())], out)
        return Prepared(folder, {})
    out = Path(out) if out else DATA_FOLDER / _name_of(folder)
    common = {"progress": progress, "overwrite": overwrite, "notify": notify}
    return Prepared(out, _write(folder, out, splits, options, common))


_DEFAULTS = prepare.__kwdefaults__
_SAMPLING = ("validation_images", "split", "group", "seed")


def _write(
    folder: Path, out: Path, splits: Mapping | None, options: dict[str, Any], common: dict[str, Any]
) -> dict[str, Any]:
    """Writes the set with the reader of its format, and returns the reports."""
    if not 0 <= (max_bad := options.get("max_bad", 0)) <= 1:
        raise InputError(f"max_bad is {max_bad:g}, but is a share from 0 to 1")
    if not splits and not folder.exists():
        raise InputError(f"{folder} is not a folder")
    if not splits and folder.is_dir() and cityscapes.recognises(folder):
        if options:
            raise InputError(f"{folder} is laid out like Cityscapes, to which {min(options)} does not apply")
        check_destination(out, common["overwrite"])
        return cityscapes.prepare(folder, out, progress=common["progress"], overwrite=common["overwrite"])
    notify = common.pop("notify")
    sampling = {option: options.pop(option, _DEFAULTS[option]) for option in _SAMPLING}
    require_sampling(**sampling)
    given = _given(splits) if splits else {}
    check_destination(out, common["overwrite"])
    if splits:
        files, notes = given, []
    else:
        files, notes = _find(folder, options.pop("keypoints", False), notify)
        options["name"] = options.get("name") or _name_of(folder)
    files = coco_layout.sample_splits(files, folder, **sampling)
    if "validation" not in files:
        notes.append(f"there is no validation split, so that a training cannot be evaluated: {ADVICE}")
    for note in notes:
        notify(note)
    return coco.prepare(files, out, **options, **common)


def _name_of(folder: Path) -> str:
    """Returns the name of a folder; of that of a YAML or XML file, as these are named alike in every set."""
    if folder.is_file():
        return folder.stem if folder.suffix.lower() == ".json" else folder.resolve().parent.name
    return folder.resolve().name


def _find(
    folder: Path, keypoints: bool, notify: Callable[[str], object]
) -> tuple[dict[str, CocoSplit], list[str]]:
    """Returns the files of the splits in the first format that is recognised, and what is not used."""
    if coco_layout.recognises(folder):
        files = coco_layout.find_splits(folder, keypoints=keypoints)
        return files, coco_layout.unused_files(folder, files)
    found = files_by_suffix(folder)
    root = folder if folder.is_dir() else folder.parent
    formats = [format_ for format_ in OTHERS if format_.recognises(root, found)]
    if not formats and coco_layout.recognises(folder, certainly=False):  # the reader says what is wrong
        return coco_layout.find_splits(folder, keypoints=keypoints), []
    if not formats:
        raise InputError(f"{folder} is in no known format: {describe_files(found) or _looked_for(found)}")
    if keypoints:
        raise InputError(f"{folder} is in the format of {formats[0].NAME}, to which keypoints does not apply")
    others = ", ".join(one.NAME for one in formats[1:])
    unused = f"; annotations of {others} are not used" if others else ""
    notify(f"{folder} is read as {formats[0].NAME}{unused}")
    splits, notes = formats[0].read(root, found), []
    if "train" not in splits and len(splits) > 1:
        given = " and ".join(splits)
        raise InputError(f"{folder} is read as {formats[0].NAME}, but has only the splits {given}, not train")
    if "train" not in splits:
        (name,) = splits
        notes.append(f"{folder} has one split alone, which becomes train although its name says {name}")
        splits = {"train": splits[name]}
    return splits, notes


def _looked_for(found: dict[str, list[Path]]) -> str:
    counts = [f"{len(paths):,} {suffix or 'without a suffix'}" for suffix, paths in sorted(found.items())]
    known = ["COCO: JSON files", "Cityscapes: gtFine and leftImg8bit", *(one.LOOKS_FOR for one in OTHERS)]
    return f"it holds {', '.join(counts[:8]) or 'no files'}, and what was looked for is {'; '.join(known)}"


def _given(splits: Mapping[str, tuple[str | os.PathLike, str | os.PathLike]]) -> dict[str, CocoSplit]:
    """Returns the files that were named for each split, if they exist."""
    if "train" not in splits:
        raise InputError(f"annotations are given for {', '.join(splits)} but not for the split train")
    for split, (images, annotations) in splits.items():
        if Path(images).is_file() and Path(annotations).is_dir():
            order = f"first the image folder, then the annotation file: {annotations} {images}"
            raise InputError(f"the split {split} takes {order}")
        if not Path(images).is_dir():
            raise InputError(f"the image folder {images} of the split {split} is not a folder")
        if not Path(annotations).is_file():
            kind = "is a folder" if Path(annotations).is_dir() else "is a pipe or a device"
            kind = kind if Path(annotations).exists() else "does not exist"
            raise InputError(f"the annotation file {annotations} of the split {split} {kind}")
    return {split: CocoSplit(*map(Path, paths)) for split, paths in splits.items()}


def _refuse_options(folder: Path, given: list[str], out: str | os.PathLike | None) -> None:
    if out and Path(out).resolve() != folder.resolve():
        given.insert(0, "out")
    if given:
        advice = "give the folder that it was made from"
        reason = f"to which {given[0]} does not apply: {advice}"
        raise InputError(f"{folder} is a prepared data set already, {reason}")
