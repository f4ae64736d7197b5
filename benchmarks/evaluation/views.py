"""python -m benchmarks.evaluation.views RUN: AP of a trained run by how images are seen.

Test-time augmentation on newly drawn shapes, tiles on large images of many. Intervals of the differences from
the first row of each part are bootstrapped over images. Without RUN only the page is written.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks._markdown import fill, read_result, table, write_page
from benchmarks._program import RESULTS, check, rounded, versions, write_files
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset import open_dataset
from mrcnn_jax.evaluation.analysis.comparison import compare
from mrcnn_jax.evaluation.analysis.matches import read_matches
from mrcnn_jax.evaluation.coco import evaluate_coco
from mrcnn_jax.inference.detector import load
from mrcnn_jax.inference.evaluate import KINDS, detect_split

PROGRAM, PAGE = "python -m benchmarks.evaluation.views", "VIEWS.md"
SCALES, TILE = (112, 128, 144), {"tile": 128, "tile_overlap": 0.5}
FLIP = {"evaluation.tta_flip": True}
SIZES = {"augmentation": shapes.ShapesConfig.image_sizes, "tiles": ((384, 512),)}
OBJECTS = {"augmentation": 5, "tiles": 40}
MANY = {"model.rpn.pre_nms_test": 400, "model.rpn.post_nms_test": 400, "model.box.max_candidates": 1000,
        "model.box.max_detections": 100}  # fmt: skip
"""Settings for images of many objects."""
ROWS: Mapping[str, Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "augmentation": {
        "once": ({}, {}),
        "mirrored too": (FLIP, {}),
        "at 3 scales": ({"evaluation.tta_scales": SCALES}, {}),
        "at 3 scales, mirrored too": ({"evaluation.tta_scales": SCALES} | FLIP, {}),
    },
    "tiles": {
        "whole, reduced to 128 pixels": (MANY, {}),
        "whole, all 384 pixels": (MANY | {"data.short_edge_test": 384, "data.long_edge": 512}, {}),
        "in tiles of 128 pixels": (MANY, TILE),
    },
}


@dataclass(frozen=True)
class Options:
    """Compare ways in which a trained run sees images."""

    run: tyro.conf.Positional[Path | None] = None
    """Directory of a run on `shapes`."""
    trained_by: str = ""
    """Command that made the run."""
    images: int = 150
    """Images for test-time augmentation."""
    large_images: int = 6
    """Large images for tiles."""
    out: Path = RESULTS / "views.json"
    """JSON file of the results; the page is written beside it."""


def measure(run: Path, part: str, images: int) -> list[dict[str, Any]]:
    """Evaluates the rows of a part on newly drawn images."""
    rows, first = [], {}
    with TemporaryDirectory() as folder:
        drawn = shapes.ShapesConfig(train_images=1, validation_images=images, seed=1,
                                    image_sizes=SIZES[part], max_objects=OBJECTS[part])  # fmt: skip
        shapes.prepare(Path(folder, "drawn"), drawn)
        split = open_dataset(Path(folder, "drawn"), "validation")
        for name, (settings, tile) in ROWS[part].items():
            detector = load(run, settings)
            results, _ = detect_split(detector, split, **tile)
            kinds = [KINDS[task] for task in detector.experiment.model.tasks]
            matches: dict[str, Any] = {}
            evaluate_coco(
                split.ground_truth(), results, kinds, keypoint_sigmas=split.info.keypoint_sigmas,
                inspect=lambda kind, found, to=matches: to.update({kind: read_matches(found)}),
            )  # fmt: skip
            first = first or matches
            found = {kind: compare(first[kind], matches[kind])["metrics"]["AP"] for kind in kinds}
            row = {kind: {key: rounded(value) for key, value in each.items()} for kind, each in found.items()}
            rows.append({"seen": name, "AP": row})
            print(rows[-1], flush=True)
    return rows


def page(result: Mapping[str, Any]) -> str:
    """Renders the results."""
    kinds, names = result["augmentation"][0]["AP"], {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}

    def cell(ap, is_first):
        interval = "" if is_first else f" ({ap['difference']:+.1f}; {ap['low']:+.1f} to {ap['high']:+.1f})"
        return f"{ap['second']:.1f}{interval}"

    def render(rows):
        lines = [[row["seen"], *(cell(row["AP"][kind], row is rows[0]) for kind in kinds)] for row in rows]
        return table(["images are seen", *(f"{names[kind]} AP" for kind in kinds)], lines)

    parts = {part: render(result[part]) for part in ROWS}
    return fill(PAGE, **result | parts, scales=", ".join(map(str, SCALES)))


def run(options: Options) -> list[Path]:
    """Measures, if a run is given, and writes the page."""
    check(options, images=1, large_images=1)
    if options.run:
        counts = {"augmentation": options.images, "tiles": options.large_images}
        measured = {part: measure(options.run, part, count) for part, count in counts.items()}
        about = {"command": PROGRAM, "trained_by": options.trained_by, "images": options.images,
                 "large_images": options.large_images, "versions": versions("jax", "numpy")}  # fmt: skip
        write_json(options.out, about | measured)
    return write_page(options.out.with_name(PAGE), page(read_result(options.out, PROGRAM, *ROWS)))


if __name__ == "__main__":
    sys.exit(write_files(PROGRAM, Options, run))
