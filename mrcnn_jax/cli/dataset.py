"""`mrcnn dataset`: prepares a data set, or shows a prepared one."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from mrcnn_jax import presets
from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import parse
from mrcnn_jax.config import AUGMENTATIONS, Augmentation
from mrcnn_jax.errors import InputError, printable


@dataclass(frozen=True)
class Options:
    """Prepare a data set for training from images and annotations, whose format is recognised: COCO,
    Cityscapes, YOLO, Pascal VOC, CVAT, LabelMe or mask files; or show what a prepared one holds."""

    folder: tyro.conf.Positional[Path]
    """Folder with images and annotations, or a file that describes them (COCO's JSON file, data.yaml,
    annotations.xml); or a prepared data set."""
    out: Path | None = None
    """Directory of the prepared data set; by default data/<name of the folder>."""
    train: tuple[Path, Path] | None = None
    """Image folder and COCO file of the training split, where they are not found by name."""
    validation: tuple[Path, Path] | None = None
    """Image folder and COCO file of the validation split, where they are not found by name."""
    test: tuple[Path, Path] | None = None
    """Image folder and COCO file of a third split, where they are not found by name."""
    validation_images: int = 0
    """Number of images that are sampled for validation, of every class if possible, where there are
    no annotations for it."""
    split: tuple[float, ...] = ()
    """In place of that number, the shares of images that are sampled for train, validation and, if a third is
    given, test: 0.8 0.1 0.1."""
    group: str | None = None
    """Images that stay together when sampled: "folder" for those of one folder, or a text, for those whose
    names are equal before it ("_": p7_1.png and p7_2.png)."""
    seed: int = 0
    """Seed of the sampling."""
    keypoints: bool = False
    """Prefer person_keypoints_*.json to instances_*.json."""
    max_bad: float = 0.05
    """Largest share of the images of a split, rounded up, that are left out if they are missing or cannot be
    used; with more the set is refused."""
    strict: bool = False
    """Refuse every flaw that would be mended or left out."""
    rotation: Literal["auto", "stored", "upright"] = "auto"
    """Frame in which photos with an EXIF orientation are annotated: the stored pixels, the upright picture,
    or the one of the two that has the annotated size."""
    overwrite: bool = False
    """Replace a prepared data set of that name."""
    draw: Path | None = None
    """File of a contact sheet of images with their objects."""
    augment: Augmentation | None = None
    """Show them in that sheet as a training with this augmentation sees them."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn dataset`; returns the exit status."""
    options = parse(Options, "dataset", arguments)
    from mrcnn_jax.data.dataset import open_dataset, split_names
    from mrcnn_jax.data.image_io import require_picture_path, save_image
    from mrcnn_jax.data.prepare import prepare
    from mrcnn_jax.data.statistics import summary

    if options.augment and not options.draw:
        raise InputError("--augment shows augmented images in a contact sheet: name its file, --draw FILE")
    if options.draw:
        require_picture_path(options.draw)
    console = Console()
    given = {"train": options.train, "validation": options.validation, "test": options.test}
    prepared = prepare(
        options.folder, options.out, splits={split: files for split, files in given.items() if files},
        validation_images=options.validation_images, split=options.split, group=options.group,
        seed=options.seed, keypoints=options.keypoints,
        max_bad=options.max_bad, strict=options.strict, rotation=options.rotation, progress=True,
        overwrite=options.overwrite, notify=lambda note: print(f"Note: {printable(note)}", file=sys.stderr),
    )  # fmt: skip
    for report in prepared.reports.values():
        _print(console, str(report))
    console.print(summary(prepared.directory))
    if options.draw:
        from mrcnn_jax.visualize.sheets import augmented_sheet, ground_truth_sheet

        first = open_dataset(prepared.directory, split_names(prepared.directory)[0])
        if options.augment:
            picture = augmented_sheet(first, 16, AUGMENTATIONS[options.augment], options.seed)
        else:
            picture = ground_truth_sheet(first, 16)
        save_image(options.draw, picture)
        _print(console, f"A contact sheet is in {options.draw}.")
    _print(console, _next_step(prepared.directory, arguments if prepared.reports else None))
    return OK


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _next_step(directory: Path, arguments: list[str] | None) -> str:
    """Returns the last lines of the output: what is ready, and a command to paste.

    Args:
        directory: of the prepared set.
        arguments: those that made it; None if it was there already.
    """
    from mrcnn_jax.data.dataset import read_metadata

    _, statistics = read_metadata(directory)
    images = statistics["train"]["images"] if "train" in statistics else 0
    if "validation" not in statistics:
        lack, count = "There is no validation split, which a training needs", str(max(1, images // 10))
        if images < 2:
            return f"{lack}, and one image cannot be divided."
        if not arguments:
            return f"{lack}: prepare the set again from its folder with --validation-images {count}"
        words = [*arguments, *["--overwrite"] * ("--overwrite" not in arguments)]
        command = shlex.join(["mrcnn", "dataset", *words, "--validation-images", count])
        return f"{lack}. This makes one:\n{command}"
    if "train" not in statistics:
        return "There is no training split."
    if not statistics["train"]["objects"]:
        return "The training split has no annotated objects."
    command = shlex.join(["mrcnn", "train", presets.suggest(images), "--data.dataset", str(directory)])
    return f"Ready. This trains on it:\n{command}"
