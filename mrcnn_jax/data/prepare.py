"""Conversion of a folder of images and annotations, in any known format, into a prepared data set."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_jax.data.catalog import DATA_FOLDER
from mrcnn_jax.data.dataset import is_prepared
from mrcnn_jax.data.dataset_writer import check_destination
from mrcnn_jax.data.formats import cityscapes, coco, coco_layout
from mrcnn_jax.data.formats.coco_layout import CocoSplit
from mrcnn_jax.data.formats.foreign_files import describe_folder
from mrcnn_jax.data.stored_image import Rotation
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_local

ADVICE = "set images aside with --validation-images NUMBER, e.g. a tenth of them"


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
        folder: a folder in COCO format, its only annotation file, the root of Cityscapes, or a prepared set,
            which is left as it is and takes no other option.
        out: the directory to write; by default data/<name of the folder>.
        splits: image folder and COCO annotation file of "train", "validation" and "test", if not found by
            name.
        validation_images: COCO without validation annotations: number of images drawn for validation, so
            that every class is in both splits if possible.
        seed: of that draw.
        keypoints: COCO: prefer person_keypoints_*.json to instances_*.json.
        name: COCO: name of the data set; by default that of the folder.
        max_bad: COCO: largest share of a split's images, rounded up, that may be left out as unusable.
        strict: COCO: refuse every flaw that would be mended or left out.
        rotation: COCO: frame of the annotations of photos with an EXIF orientation: "stored" pixels,
            "upright", or "auto", which tells it by the annotated size.
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
    options = {"validation_images": validation_images, "keypoints": keypoints, "name": name,
               "max_bad": max_bad, "strict": strict, "rotation": rotation, "seed": seed}  # fmt: skip
    options = {option: value for option, value in options.items() if value != _DEFAULTS.get(option)}
    if is_prepared(folder):
        _refuse_options(folder, [*options, *["overwrite"] * overwrite, *(splits or ())], out)
        return Prepared(folder, {})
    if not 0 <= max_bad <= 1:
        raise InputError(f"max_bad is {max_bad:g}, but is a share from 0 to 1")
    out = Path(out) if out else DATA_FOLDER / (folder.stem if folder.is_file() else folder.absolute().name)
    common = {"progress": progress, "overwrite": overwrite, "notify": notify}
    return Prepared(out, _write(folder, out, splits, options, common))


_DEFAULTS = prepare.__kwdefaults__


def _write(
    folder: Path, out: Path, splits: Mapping | None, options: dict[str, Any], common: dict[str, Any]
) -> dict[str, Any]:
    """Writes the set with the reader of its format, and returns the reports."""
    if splits:
        return _prepare_coco(folder, out, splits=splits, **options, **common)
    if not folder.exists():
        raise InputError(f"{folder} is not a folder")
    if folder.is_dir() and cityscapes.recognises(folder):
        if options:
            raise InputError(f"{folder} is laid out like Cityscapes, to which {min(options)} does not apply")
        check_destination(out, common["overwrite"])
        return cityscapes.prepare(folder, out, progress=common["progress"], overwrite=common["overwrite"])
    if not coco_layout.recognises(folder):
        layouts = "COCO (JSON files and images) or Cityscapes (gtFine and leftImg8bit)"
        found = describe_folder(folder) if folder.is_dir() else "it is a file, but not JSON"
        raise InputError(f"{folder} is in no known format: {found or f'it is not {layouts}'}")
    return _prepare_coco(folder, out, **options, **common)


def _prepare_coco(
    folder: Path, out: Path, *, notify: Callable[[str], object], splits: Mapping | None = None,
    validation_images: int = 0, seed: int = 0, keypoints: bool = False, name: str | None = None,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    if splits:
        files = coco_layout.hold_out_validation(_given(splits), validation_images, seed, folder)
    else:
        files = coco_layout.find_splits(folder, validation_images, keypoints=keypoints, seed=seed)
        name = name or (folder.stem if folder.is_file() else folder.absolute().name)
    check_destination(out, options["overwrite"])
    notes = [] if splits else coco_layout.unused_files(folder, files)
    if "validation" not in files:
        notes.append(f"there is no validation split, so that a training cannot be evaluated: {ADVICE}")
    for note in notes:
        notify(note)
    return coco.prepare(files, out, name=name, **options)


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
            raise InputError(f"{annotations}: there is no such annotation file")
    return {split: CocoSplit(*map(Path, paths)) for split, paths in splits.items()}


def _refuse_options(folder: Path, given: list[str], out: str | os.PathLike | None) -> None:
    if out and Path(out).resolve() != folder.resolve():
        given.insert(0, "out")
    if given:
        advice = "give the folder that it was made from"
        reason = f"to which {given[0]} does not apply: {advice}"
        raise InputError(f"{folder} is a prepared data set already, {reason}")
