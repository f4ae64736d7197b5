"""Evaluation of a detector on a data set: detection on all devices, metrics, result files and pictures."""

import os
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.table import Table

from mrcnn_jax.atomic_io import require_writable, write_json
from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.config.validation import MOST_PICTURES, require_whole
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.transforms import decode_record, inference_sizes
from mrcnn_jax.detections import Detections
from mrcnn_jax.distributed import all_gather_object, is_primary
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.cityscapes import CityscapesEvaluator, cityscapes_table
from mrcnn_jax.evaluation.coco import DEFAULT_SIGMA, Metrics, evaluate_coco, metrics_table
from mrcnn_jax.inference.detector import CheckpointChoice, Detector, load, print_warning
from mrcnn_jax.inference.evaluation_files import FILES, add_analysis, write_pictures, write_results
from mrcnn_jax.inference.matching import Match, match_dataset
from mrcnn_jax.inference.result_files import Autosave
from mrcnn_jax.inference.stream import Pipeline, StreamResult, stream_results
from mrcnn_jax.inference.tiles import require_tiles, stream_tiles
from mrcnn_jax.typing import Int
from mrcnn_jax.visualize.draw import ColorBy
from mrcnn_jax.visualize.sheets import prediction_sheet, sheet_records

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
"""COCO's name for the evaluation of each task."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all images."""
Save = Callable[[list[dict[str, Any]]], None]
"""Called with the entries of a COCO results file."""


@dataclass(frozen=True)
class Evaluation:
    """Result of evaluating a detector on a split of a data set."""

    split: DatasetSplit
    metrics: Metrics  # in percent, by kind: "bbox", "segm", "keypoints" or "proposals"; perhaps "cityscapes"
    results: list[dict[str, Any]]  # entries of a COCO results file, in the order of image ids
    examples: dict[int, Detections]  # detections in the images of the contact sheet, by image id
    picture_score: float  # minimum score of detections that are drawn
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)  # by kind, if asked for
    _sheets: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def sheet(self, color_by: ColorBy = "object") -> np.ndarray:
        """Draws the contact sheet of the examples, once."""
        if color_by not in self._sheets:
            sheet = prediction_sheet(self.split, self.examples, self.picture_score, color_by)
            self._sheets[color_by] = sheet
        return self._sheets[color_by]

    def tables(self) -> list[Table]:
        """Returns the metrics as tables for ``rich.print``."""
        coco = {kind: values for kind, values in self.metrics.items() if kind != "cityscapes"}
        title = f"{self.split.directory.name}/{self.split.split}: {len(self.split)} images"
        official = [self.metrics["cityscapes"]] if "cityscapes" in self.metrics else []
        return [metrics_table(coco, title), *(cityscapes_table(values, "Cityscapes") for values in official)]


def evaluate(
    detector: Detector | str | os.PathLike, dataset: str | os.PathLike | None = None,
    split: str | None = None, out: str | os.PathLike | None = None, *, pictures: int | None = None,
    cityscapes: str | os.PathLike | None = None, progress: Progress | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}), color_by: ColorBy = "object",
    tile: int = 0, tile_overlap: float = 0.25, store_programs: bool = False, report: bool = True,
    checkpoint: CheckpointChoice = "best",
) -> Evaluation:  # fmt: skip
    """Evaluates a detector on a split of a prepared data set with the COCO metrics.

    Classes and keypoints are matched by name (``match_dataset``). Objects of classes that the detector does
    not know are not scored, and masks not in a split without any; a warning on stderr says so.

    Args:
        detector: or the directory of a training run or of imported weights.
        dataset: directory of a set with classes that it knows; by default the one it was trained on.
        split: by default the validation split.
        out: directory of results.json (COCO results), metrics.json and predictions.png; None writes nothing.
        pictures: images of the contact sheet, by default ``evaluation.pictures`` of the experiment; 0: none.
        cityscapes: root of Cityscapes, to compute its official metrics too (extra mrcnn_jax[cityscapes]).
        progress: called with the number of images done and of all images.
        settings: as for ``load``, if ``detector`` is a directory.
        store_programs: likewise.
        color_by: colours of the contact sheet, as in ``draw_detections``.
        tile: tiles in which images are seen, as in ``Detector.stream``.
        tile_overlap: likewise.
        report: write a report to ``out`` too, unless the model predicts proposals alone (``write_report``).
        checkpoint: as for ``load``.

    Returns:
        Metrics in percent by kind, and detections as entries of a COCO results file.

    Raises:
        InputError: a number is out of range, no class is known, or something cannot be read or written.
    """
    require_whole("the number of pictures", 0 if pictures is None else pictures, 0, MOST_PICTURES)
    if tile != 0:
        require_tiles(tile, tile_overlap)
    if out:
        require_writable(out, FILES)
    name = detector if isinstance(detector, str | os.PathLike) else "the detector"
    if isinstance(detector, str | os.PathLike):
        detector = load(detector, settings, checkpoint=checkpoint, store_programs=store_programs)
    source = _open(detector, name, dataset, split)
    official = _open_cityscapes(detector, name, source, cityscapes) if cityscapes else None
    pictures = detector.experiment.evaluation.pictures if pictures is None else pictures
    save = partial(write_results, epath.Path(out)) if out else None
    evaluation = evaluate_split(
        detector, source, pictures=pictures if out else 0, progress=progress, save=save,
        analyses=bool(out) and report, tile=tile, tile_overlap=tile_overlap,
    )  # fmt: skip
    if out:
        write_json(epath.Path(out) / "metrics.json", evaluation.metrics)
    if official:
        evaluation.metrics["cityscapes"] = official(evaluation.results)
        if out:
            write_json(epath.Path(out) / "metrics.json", evaluation.metrics)
    if out:
        write_pictures(epath.Path(out), f"Evaluation of {name}", evaluation, color_by)
    return evaluation


def _open_cityscapes(detector: Detector, name: Any, source: DatasetSplit, root: Any) -> CityscapesEvaluator:
    """Opens the files of Cityscapes' official metrics; InputError if the detector predicts no masks."""
    if "masks" not in detector.experiment.model.tasks:
        raise InputError(f"{name} predicts no masks, but Cityscapes evaluates masks")
    return CityscapesEvaluator(source, root)


def _open(detector: Detector, name: Any, dataset: Any, split: str | None) -> DatasetSplit:
    """Opens a split, and warns of what cannot be scored on it; InputError if nothing can."""
    data = detector.experiment.data
    given = data if dataset is None else replace(data, dataset=os.fspath(dataset))
    source = open_split(given, split or data.validation_split)
    match = match_dataset(detector.info, source.info, detector.experiment.model.tasks, name, source.directory)
    for message in [*match.warnings, *scored_kinds(detector, source, match)[1]]:
        print_warning(message)
    return source


def scored_kinds(detector: Detector, split: DatasetSplit, match: Match) -> tuple[list[str], list[str]]:
    """Returns COCO's names of what the detector can be scored on in a split, and warnings of what it cannot.

    Masks are not scored where objects are annotated, but none with a mask.
    """
    kinds, warnings = [KINDS[task] for task in detector.experiment.model.tasks] or ["proposals"], []
    objects = split.ground_truth()["annotations"]
    if "segm" in kinds and objects and not any("segmentation" in each for each in objects):
        kinds.remove("segm")
        warnings.append(f"no object of {split.directory} ({split.split}) has a mask: boxes alone are scored")
    elif "segm" in kinds and (without := sum("segmentation" not in each for each in objects)):
        counts = f"{without:,} of {len(objects):,} objects of {split.directory} ({split.split})"
        warnings.append(f"{counts} have no mask: masks are scored on the others")
    if "keypoints" in kinds and match.keypoints is None:
        kinds.remove("keypoints")
    return kinds, warnings


def evaluate_split(
    detector: Detector, split: DatasetSplit, *, pictures: int = 0, progress: Progress | None = None,
    per_class: bool = False, save: Save | None = None, analyses: bool = False, tile: int = 0,
    tile_overlap: float = 0.25,
) -> Evaluation:  # fmt: skip
    """Detects in every image of a split and computes the COCO metrics of all that the model predicts.

    With several processes, each detects in its share of the images, and all return the same evaluation.

    Args:
        detector: may know more classes than the data set; detections of those are left out.
        split: whose ground truth is compared.
        pictures: images whose detections are kept for the contact sheet, spread evenly over the split.
        progress: called with the number of images done (of all processes, roughly) and of all images.
        per_class: add the AP of each class.
        save: called with the results so far now and then, when something ends the detection, and with all
            results before the metrics are computed.
        analyses: return what ``analyze`` finds out about each kind.
        tile, tile_overlap: as for ``evaluate``.
    """
    config, info, tasks = detector.experiment.evaluation, split.info, detector.experiment.model.tasks
    match = match_dataset(detector.info, info, tasks, "the detector", split.directory)
    keep = {record.image_id for record in sheet_records(split, pictures)}
    results, examples = detect_split(
        detector, split, keep=keep, progress=progress, save=save, tile=tile, tile_overlap=tile_overlap
    )
    if save and is_primary():
        save(results)
    kinds, _ = scored_kinds(detector, split, match)
    sigmas = info.keypoint_sigmas or (DEFAULT_SIGMA,) * len(info.keypoint_names)
    truth = match.restrict(split.ground_truth())
    found: dict[str, dict[str, Any]] = {}
    inspect = partial(add_analysis, found) if analyses else None
    metrics = evaluate_coco(truth, results, kinds, config.max_detections, per_class, sigmas, inspect=inspect)
    return Evaluation(split, metrics, results, examples, config.picture_score, found)


def detect_split(
    detector: Detector, split: DatasetSplit, *, keep: Container[int] = (), progress: Progress | None = None,
    save: Save | None = None, tile: int = 0, tile_overlap: float = 0.25,
) -> tuple[list[dict[str, Any]], dict[int, Detections]]:  # fmt: skip
    """Detects in every image of a split, on all devices of all processes.

    Args:
        detector: as for ``evaluate_split``.
        split: of a prepared data set.
        keep: ids of images whose detections are returned too.
        progress: as for ``evaluate_split``.
        save: called now and then with what one process alone has found so far, and when something ends it.
        tile, tile_overlap: as for ``evaluate``.

    Returns:
        COCO results in the order of image ids, in each image best first; detections by image id.
    """
    processes, data = jax.process_count(), detector.experiment.data
    collector = _Collector(detector, split, keep, progress, save if processes == 1 else None)
    batch_size = detector.experiment.evaluation.images_per_device
    pipeline = Pipeline(detector, batch_size, all_devices=True, known=collector.known)
    order = evaluation_order(split.sizes, data, detector.experiment.model.conventions)
    images = order[jax.process_index() :: processes]

    def decode(index: int) -> np.ndarray:
        return decode_record(split[index])

    if tile:
        found = stream_tiles(pipeline, images, tile, tile_overlap, decode)
    else:
        found = stream_results(pipeline, images, decode)
    with collector.saving():
        for result in found:
            collector.add(result)
    shares = all_gather_object((collector.results, collector.examples))
    results = [entry for share, _ in shares for entry in share]
    examples = {image_id: detections for _, share in shares for image_id, detections in share.items()}
    return sorted(results, key=lambda entry: entry["image_id"]), examples


def evaluation_order(
    sizes: Int[np.ndarray, "N 2"], data: DataConfig, conventions: Conventions = OURS
) -> list[int]:
    """Returns the indices of all images, those of equal padded size one after the other."""
    padded = [inference_sizes(*size, data, conventions)[1] for size in sizes.tolist()]
    return sorted(range(len(padded)), key=padded.__getitem__)


class _Collector:
    """Results and examples of one process; the arguments are those of ``detect_split``."""

    def __init__(
        self, detector: Detector, split: DatasetSplit, keep: Container[int], progress: Progress | None,
        save: Save | None,
    ):  # fmt: skip
        self._keep, self._progress = keep, progress
        tasks = detector.experiment.model.tasks
        self._ids = [image["id"] for image in split.ground_truth()["images"]]
        self._match = match_dataset(detector.info, split.info, tasks, "the detector", split.directory)
        self.known = np.array(self._match.info.category_ids) >= 0 if tasks else np.ones(1, bool)
        self.results: list[dict[str, Any]] = []
        self.examples: dict[int, Detections] = {}
        self._done, self._save = 0, save
        self._autosave = Autosave(lambda: save(self.results)) if save else None

    def add(self, result: StreamResult) -> None:
        """Adds the detections of an image, whose source is its index; raises the error if there is one."""
        if result.error is not None:
            raise result.error
        image_id, found = self._ids[result.source], result.detections
        if self._match.keypoints is not None:  # in the order of the data set
            found = replace(found, keypoints=found.keypoints[:, self._match.keypoints])
        self.results.extend(found.to_coco(image_id, self._match.info))
        if image_id in self._keep:
            self.examples[image_id] = found
        self._done += jax.process_count()
        if self._progress:
            self._progress(min(self._done, len(self._ids)), len(self._ids))
        if self._autosave:
            self._autosave()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Saves what was found if something ends the block."""
        try:
            yield
        except BaseException:
            if self._save and self.results:
                self._save(self.results)
            raise
