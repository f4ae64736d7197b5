"""The official instance-level AP of Cityscapes, computed by cityscapesscripts.

AP is averaged over ten IoU thresholds, 0.5 to 0.95, and over the classes that occur. Objects below 100 pixels
do not count, nor do false positives that lie mostly in groups or in void areas. Metrics are percentages; None
stands for metrics that the ground truth does not define.
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
    """Evaluates COCO results on a prepared split of Cityscapes.

    The constructor checks everything but the results, so that nothing is found missing after an hour of
    detection.

    Args:
        split: the images that count, whether anything was detected in them or not.
        folder: root of Cityscapes, with gtFine.

    Raises:
        InputError: cityscapesscripts is not installed, the split is not of Cityscapes, or files of gtFine are
            missing, unreadable or of another size than the images.
    """

    def __init__(self, split: DatasetSplit, folder: str | os.PathLike):
        self._scripts = _official_scripts()
        classes = zip(split.info.category_names, split.info.category_ids, strict=True)
        for name, id_ in sorted(set(classes) - set(LABELS.items())):
            flaw = f"it has the class {name!r} with id {id_}"
            raise InputError(f"{split.directory} is not a set of Cityscapes: {flaw}")
        self.truth: dict[int, Path] = {}
        self.frames: dict[int, Frame] = {}
        for image in split.ground_truth()["images"]:
            path = Path(folder) / truth_name(image["file_name"])
            height, width = read_instance_ids(path).shape
            if (height, width) != (image["height"], image["width"]):
                sizes = f"{width}x{height} (width x height)", f"{image['width']}x{image['height']}"
                raise InputError(f"{path} is {sizes[0]}, but {image['file_name']} is {sizes[1]}")
            self.truth[image["id"]] = path
            self.frames[image["id"]] = Frame(path.name.split("_gtFine")[0], height, width)

    def __call__(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        """Computes the official metrics.

        Args:
            results: COCO results with masks as compressed RLE, as ``Detections.to_coco`` makes
                them; may be empty.

        Returns:
            {"AP", "AP50", "per_class": {name: {"AP", "AP50"}}}, in percent.

        Raises:
            InputError: as ``write_results``, or a file of gtFine with unknown labels.
        """
        with tempfile.TemporaryDirectory() as folder:
            write_results(folder, results, self.frames)
            averages = self._averages(folder)
        classes = averages["classes"].items()
        per_class = {name: _percent(values["ap"], values["ap50%"]) for name, values in classes}
        return _percent(averages["allAp"], averages["allAp50%"]) | {"per_class": per_class}

    def _averages(self, folder: str) -> dict[str, Any]:
        """Runs the steps of the package's ``evaluateImgLists``, on several images at once."""
        scripts, settings = self._scripts, copy.copy(self._scripts.args)
        settings.quiet, settings.predictionPath = True, os.path.abspath(folder)
        scripts.setInstanceLabels(settings)

        def match(image_id: int) -> dict[str, Any]:
            prediction, truth = f"{folder}/{self.frames[image_id].name}.txt", str(self.truth[image_id])
            return scripts.matchGtWithPreds([prediction], [truth], self._instances(truth), settings)

        # threads suffice: nearly all of it is NumPy's work on whole images
        with _silenced() as output, ThreadPoolExecutor() as pool:
            try:
                matches = {}
                for matched in pool.map(match, self.frames):
                    matches |= matched
                return scripts.computeAverages(scripts.evaluateMatches(matches, settings), settings)
            except SystemExit:  # how the package reports errors
                reason, *_ = output.getvalue().splitlines() or ["no reason given"]
                raise InputError(f"cityscapesscripts failed: {reason}") from None

    def _instances(self, truth: str) -> dict[str, dict]:
        try:
            return self._scripts.instances2dict(truth)
        except KeyError as label:
            raise InputError(f"{truth} holds the label {label}, which Cityscapes does not know") from None


def write_results(
    folder: str | os.PathLike, results: list[dict[str, Any]], frames: Mapping[int, Frame]
) -> None:
    """Writes results in the format of the benchmark's server: NAME.txt per image, "mask file, label, score"
    per line.

    Args:
        folder: gets the text files, and the masks in masks/.
        results: COCO results with masks as compressed RLE.
        frames: by image id; one without results gets an empty file.

    Raises:
        InputError: a result of an unknown image or class, or without a mask of the image's size.
    """
    by_image: dict[int, list[dict]] = defaultdict(list)
    for number, entry in enumerate(results):
        if flaw := _flaw(entry, frames):
            raise InputError(f"results entry {number} has {flaw}")
        by_image[entry["image_id"]].append(entry)
    folder = Path(folder)
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for image_id, frame in frames.items():
        lines = []
        for number, entry in enumerate(by_image[image_id]):
            mask = f"masks/{image_id}_{number}.png"
            pixels = coco_mask.decode(entry["segmentation"]) * np.uint8(255)
            options = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1]
            cv2.imwrite(f"{folder}/{mask}", pixels, options)
            lines.append(f"{mask} {entry['category_id']} {entry['score']}\n")
        (folder / f"{frame.name}.txt").write_text("".join(lines))


def _flaw(entry: dict[str, Any], frames: Mapping[int, Frame]) -> str | None:
    """Describes what makes a results entry unusable, if anything does."""
    image_id, label, mask = entry["image_id"], entry["category_id"], entry.get("segmentation")
    if image_id not in frames:
        return f"image_id {image_id!r}, which is none of the {len(frames)} images"
    if label not in LABELS.values():
        return f"category_id {label!r}, but Cityscapes evaluates {', '.join(map(str, LABELS.values()))}"
    if not mask:
        return "no mask, but Cityscapes evaluates masks"
    (height, width), frame = mask["size"], frames[image_id]
    if (height, width) != (frame.height, frame.width):
        return f"a mask of {width}x{height} (width x height), but its image is {frame.width}x{frame.height}"
    return None


def cityscapes_table(metrics: dict[str, Any], title: str | None = None) -> Table:
    """Makes a table with a row for each class; a dash stands for classes that do not occur."""
    table = Table("class", title=title)
    for name in ("AP", "AP50"):
        table.add_column(name, justify="right")
    for name, values in (metrics["per_class"] | {"all": metrics}).items():
        table.add_row(name, *("-" if values[key] is None else f"{values[key]:.1f}" for key in ("AP", "AP50")))
    return table


class _Numpy:
    """NumPy with ``in1d``, which NumPy 2.4 removed and cityscapesscripts 2.3 calls."""

    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _official_scripts() -> ModuleType:
    try:
        scripts = importlib.import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    except ImportError:
        raise InputError("Cityscapes' AP is computed by cityscapesscripts, which is not installed: install "
                         "mrcnn_jax[cityscapes]") from None  # fmt: skip
    if not hasattr(np, "in1d"):
        scripts.np = _Numpy()
    return scripts


@contextlib.contextmanager
def _silenced() -> Iterator[io.StringIO]:
    """Captures the package's output, and silences NumPy's warnings of means over no class."""
    with contextlib.redirect_stdout(io.StringIO()) as output, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield output


def _percent(ap: float, ap50: float) -> dict[str, float | None]:
    metrics = {"AP": ap, "AP50": ap50}
    return {name: None if np.isnan(value) else float(100 * value) for name, value in metrics.items()}
