"""`mrcnn dataset`: prepares a data set, or shows a prepared one."""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import parse


@dataclass(frozen=True)
class Options:
    """Prepare a data set for training from images and annotations in the format of COCO or Cityscapes, or
    show what a prepared one holds."""

    folder: tyro.conf.Positional[Path]
    """Folder in COCO format (annotations/*.json and image folders), root of Cityscapes (gtFine and
    leftImg8bit), or a prepared data set."""
    out: Path | None = None
    """Directory of the prepared data set; by default data/<name of the folder>."""
    train: tuple[Path, Path] | None = None
    """Image folder and annotation file of the training split, where they are not found by name."""
    validation: tuple[Path, Path] | None = None
    """Image folder and annotation file of the validation split, where they are not found by name."""
    validation_images: int = 0
    """Number of images, the last by id, that are held out for validation, where there is one annotation
    file."""
    keypoints: bool = False
    """Prefer person_keypoints_*.json to instances_*.json."""
    overwrite: bool = False
    """Replace a prepared data set of that name."""
    draw: Path | None = None
    """File of a contact sheet of images with their objects."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn dataset`; returns the exit status."""
    options = parse(Options, "dataset", arguments)
    from mrcnn_jax.data.dataset import open_dataset, split_names
    from mrcnn_jax.data.prepare import prepare
    from mrcnn_jax.data.statistics import summary

    console = Console()
    given = {"train": options.train, "validation": options.validation}
    prepared = prepare(
        options.folder, options.out, splits={split: files for split, files in given.items() if files},
        validation_images=options.validation_images, keypoints=options.keypoints, progress=True,
        overwrite=options.overwrite,
    )  # fmt: skip
    for report in prepared.reports.values():
        console.print(str(report), highlight=False)
    console.print(summary(prepared.directory))
    if options.draw:
        from mrcnn_jax.data.image_io import save_image
        from mrcnn_jax.visualize.sheets import ground_truth_sheet

        first = open_dataset(prepared.directory, split_names(prepared.directory)[0])
        save_image(options.draw, ground_truth_sheet(first, 16))
        console.print(f"A contact sheet is in {options.draw}.", highlight=False)
    console.print(f"Ready: --data.dataset {prepared.directory}", highlight=False)
    return OK
