"""Detections -> Cityscapes' results format -> the official instance-level AP, computed by cityscapesscripts.

Its AP is averaged over ten IoU thresholds, 0.5 to 0.95, and over the classes that occur. Objects below 100 pixels do not count, and neither
do false alarms that lie mostly in groups or in void areas. Figures are percentages; None stands for what the ground truth does not define.
"""

import contextlib
import copy
import importlib
import io
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from rich.table import Table

from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.formats.cityscapes import LABELS, read_instance_ids, truth_name
from mrcnn_jax.errors import InputError


class Frame(NamedTuple):
    """One image of Cityscapes."""

    name: str  # CITY_SEQUENCE_FRAME
    height: int
    width: int


class CityscapesEvaluator:
    """Scores COCO results on a prepared split of Cityscapes.

    Everything but the results is checked by the constructor, so that nothing is missing after an hour of detection.

    Args:
      source: the images that count, whether anything was detected in them or not.
      folder: the root of Cityscapes, with gtFine.

    Raises:
      InputError: cityscapesscripts is not installed, the split is not of Cityscapes, or files of gtFine are missing, unreadable or of
        another size than the images.
    """

    def __init__(self, source: DatasetSplit, folder: str | os.PathLike):
        self._scripts = _official_scripts()
        unknown = set(zip(source.info.category_names, source.info.category_ids, strict=True)) - set(LABELS.items())
        if unknown:
            raise InputError(f"{source.directory} is no set of Cityscapes: it has the class {min(unknown)[0]!r} with id {min(unknown)[1]}.")
        self.truth: dict[int, Path] = {}
        self.frames: dict[int, Frame] = {}
        for record in source:
            path = Path(folder) / truth_name(record.file_name)
            height, width = read_instance_ids(path).shape
            if (height, width) != (record.height, record.width):
                raise InputError(f"{path} is {width}x{height} (width x height), but {record.file_name} is {record.width}x{record.height}.")
            self.truth[record.image_id] = path
            self.frames[record.image_id] = Frame(path.name.split("_gtFine")[0], height, width)

    def __call__(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """The official figures.

        Args:
          results: COCO results with masks as compressed RLE, as `scoring.detect_all` makes them; may be empty.

        Returns:
          {"AP", "AP50", "per_class": {name: {"AP", "AP50"}}}, in percent.

        Raises:
          InputError: as `write_results`, or a file of gtFine with unknown labels.
        """
        with tempfile.TemporaryDirectory() as folder:
            write_results(folder, results, self.frames)
            averages = self._averages(folder, [str(Path(folder) / f"{frame.name}.txt") for frame in self.frames.values()])
        figures = {name: _figures(of_class["ap"], of_class["ap50%"]) for name, of_class in averages["classes"].items()}
        return _figures(averages["allAp"], averages["allAp50%"]) | {"per_class": figures}

    def _averages(self, folder: str, predictions: list[str]) -> dict[str, Any]:
        """The steps of the package's own ``evaluateImgLists``, less the files that it leaves behind, and several images at a time."""
        scripts, settings = self._scripts, copy.copy(self._scripts.args)
        settings.quiet, settings.predictionPath = True, os.path.abspath(folder)
        scripts.setInstanceLabels(settings)

        def match(prediction: str, truth: str) -> dict[str, Any]:
            return scripts.matchGtWithPreds([prediction], [truth], self._instances(truth), settings)

        with _quietly() as said, ThreadPoolExecutor() as pool:  # nearly all of it is NumPy's work on whole images, which runs side by side
            try:
                matches = {}
                for matched in pool.map(match, predictions, map(str, self.truth.values())):
                    matches |= matched
                return scripts.computeAverages(scripts.evaluateMatches(matches, settings), settings)
            except SystemExit:  # how the package reports errors
                complaint, *_ = said.getvalue().splitlines() or ["without a word"]
                raise InputError(f"cityscapesscripts gave up: {complaint}") from None

    def _instances(self, truth: str) -> dict[str, dict]:
        try:
            return self._scripts.instances2dict(truth)
        except KeyError as label:
            raise InputError(f"{truth} holds the label {label}, which Cityscapes does not know.") from None


def write_results(folder: str | os.PathLike, results: list[dict[str, Any]], frames: Mapping[int, Frame]) -> None:
    """Writes results as the benchmark's server takes them: NAME.txt for each image, with a line "mask file, label, confidence" a detection.

    Args:
      folder: gets the text files, and the masks in masks/.
      results: COCO results with masks as compressed RLE.
      frames: by image id; one without results gets an empty file.

    Raises:
      InputError: a result of an unknown image or class, or without a mask of the image's size.
    """
    by_image: dict[int, list[dict]] = defaultdict(list)
    for number, entry in enumerate(results):
        image_id, label, mask = entry["image_id"], entry["category_id"], entry.get("segmentation")
        if image_id not in frames:
            raise InputError(f"results entry {number} has image_id {image_id!r}, which is none of the {len(frames)} images.")
        if label not in LABELS.values():
            raise InputError(f"results entry {number} has category_id {label!r}, but Cityscapes scores {', '.join(map(str, LABELS.values()))}.")
        if not mask:
            raise InputError(f"results entry {number} has no mask, but masks are what Cityscapes scores.")
        height, width = mask["size"]
        if (height, width) != frames[image_id][1:]:
            raise InputError(f"results entry {number} has a mask of {width}x{height} (width x height), but its image is "
                             f"{frames[image_id].width}x{frames[image_id].height}.")  # fmt: skip
        by_image[image_id].append(entry)
    folder = Path(folder)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for image_id, frame in frames.items():
        lines = []
        for number, entry in enumerate(by_image[image_id]):
            mask = f"masks/{image_id}_{number}.png"
            pixels = coco_mask.decode(entry["segmentation"]) * np.uint8(255)
            cv2.imwrite(str(folder / mask), pixels, [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1])
            lines.append(f"{mask} {entry['category_id']} {entry['score']}\n")
        (folder / f"{frame.name}.txt").write_text("".join(lines))


def cityscapes_table(figures: dict[str, Any], title: str | None = None) -> Table:
    """One row a class, a dash where it does not occur."""
    table = Table("class", title=title)
    for name in ("AP", "AP50"):
        table.add_column(name, justify="right")
    for name, of_class in (figures["per_class"] | {"all": figures}).items():
        table.add_row(name, *("-" if of_class[key] is None else f"{of_class[key]:.1f}" for key in ("AP", "AP50")))
    return table


class _Numpy:
    """NumPy with ``in1d``, which NumPy 2.4 has dropped and cityscapesscripts 2.3 calls."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _official_scripts() -> ModuleType:
    try:
        scripts = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    except ImportError:
        raise InputError("Cityscapes' AP is computed by cityscapesscripts, which is not installed: install mrcnn_jax[cityscapes].") from None
    if not hasattr(np, "in1d"):
        scripts.np = _Numpy()
    return scripts


@contextlib.contextmanager
def _quietly() -> Iterator[io.StringIO]:
    """Keeps the package's words off the screen, and NumPy's warnings of its means over classes that do not occur."""
    with contextlib.redirect_stdout(io.StringIO()) as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield said


def _figures(ap: float, ap50: float) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(100 * value) for name, value in (("AP", ap), ("AP50", ap50))}
