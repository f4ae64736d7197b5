"""Calls of the command line, and files that it reads in tests: images, and a small data set in COCO
format."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cv2
import numpy as np
import pytest

from mrcnn_jax.cli.main import main

HEIGHT, WIDTH = 24, 36
ANNOTATIONS = "pets/annotations/all.json"


def listing() -> dict[str, bytes | None]:
    """Returns the files below the working directory with their content, and its folders with None."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def write_image(path: str, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Writes an image of noise."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8))
    return Path(path)


def write_coco(**changes) -> Path:
    """Writes pets/: three images and six annotations, two of them bad and one without an area.

    Args:
        changes: lists that replace those of the annotation file.
    """
    for id_ in (1, 2, 3):
        write_image(f"pets/images/{id_}.jpg")
    polygon = [[4, 4, 14, 4, 14, 12, 4, 12]]
    good = {"image_id": 1, "category_id": 3, "bbox": [4, 4, 10, 8], "area": 80, "iscrowd": 0}
    good["segmentation"] = polygon
    content = {
        "images": [
            {"id": id_, "file_name": f"{id_}.jpg", "height": HEIGHT, "width": WIDTH} for id_ in (1, 2, 3)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 7, "name": "owl"}],
        "annotations": [
            good | {"id": 11},
            good | {"id": 12, "category_id": 90, "image_id": 2},
            good | {"id": 13, "category_id": 90, "iscrowd": 1},
            good | {"id": 14, "bbox": [4, 4, 0, 8]},
            good | {"id": 15, "bbox": [400, 4, 10, 8]},
            {key: value for key, value in good.items() if key != "area"} | {"id": 16, "bbox": [4, 4, 10, 9]},
        ],
    }
    Path("pets/annotations").mkdir(exist_ok=True)
    Path(ANNOTATIONS).write_text(json.dumps(content | changes))
    return Path("pets")


def table_rows(out: str) -> dict[str, list[str]]:
    """Returns the rows of the tables in a text, by their first cell."""
    lines = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line] for line in lines]
    return {first: rest for first, *rest in cells}


def call_cli(*arguments: object, columns: int = 200) -> tuple[int, str]:
    """Calls `mrcnn` in this process; returns the exit status and all that it prints.

    For fixtures of a module, which cannot use pytest's capsys.
    """
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setenv("COLUMNS", str(columns))
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # raised by the argument parser
            status = exit.code
    return status, out.getvalue()
