"""Evaluation of a detector on a data set: detection on all devices, metrics, result files and pictures."""

import os
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.table import Table

from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.data.catalog import open_split
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.image_io import save_image
from mrcnn_jax.data.pipeline import evaluation_batches
from mrcnn_jax.distributed import all_gather_object
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.cityscapes import CityscapesEvaluator, cityscapes_table
from mrcnn_jax.evaluation.coco import DEFAULT_SIGMA, Metrics, evaluate_coco, metrics_table
from mrcnn_jax.evaluation.results import coco_results
from mrcnn_jax.inference.detector import Detector, compiled, load
from mrcnn_jax.inference.postprocess import mask_rles, to_detections
from mrcnn_jax.structures import Detections
from mrcnn_jax.visualize.sheets import prediction_sheet, sheet_records

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
"""COCO's name for the evaluation of each task."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all images."""


@dataclass(frozen=True)
class Evaluation:
    """Result of evaluating a detector on a split of a data set."""

    split: DatasetSplit
    metrics: Metrics  # in percent, by kind: "bbox", "segm", "keypoints" or "proposals"; perhaps "cityscapes"
    results: list[dict[str, Any]]  # entries of a COCO results file, in the order of image ids
    examples: dict[int, Detections]  # detections in the images of the contact sheet, by image id
    picture_score: float  # minimum score of detections that are drawn

    def sheet(self) -> np.ndarray:
        """Draws the contact sheet of the examples."""
        return prediction_sheet(self.split, self.examples, self.picture_score)

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
) -> Evaluation:  # fmt: skip
    """Evaluates a detector on a split of a prepared data set with the COCO metrics.

    Args:
        detector: or the directory of a training run or of imported weights.
        dataset: directory of a set whose classes the detector knows; by default the one it was trained on.
        split: by default the validation split.
        out: directory that gets metrics.json, results.json (COCO results) and predictions.png, a contact
            sheet; None writes nothing.
        pictures: images of the contact sheet, by default the experiment's ``evaluation.pictures``; 0 draws
            none.
        cityscapes: root of Cityscapes, to compute its official metrics too (extra mrcnn_jax[cityscapes]).
        progress: called with the number of images done and of all images.

    Raises:
        InputError: the detector does not know the set's classes or keypoints, or something cannot be read.
    """
    name = detector if isinstance(detector, str | os.PathLike) else "the detector"
    detector = load(detector) if isinstance(detector, str | os.PathLike) else detector
    data = detector.experiment.data
    source = open_split(replace(data, dataset=str(dataset or data.dataset)), split or data.validation_split)
    _check_fits(source, detector, name)
    if cityscapes and "masks" not in detector.experiment.model.tasks:
        raise InputError(f"{name} predicts no masks, but Cityscapes evaluates masks")
    official = CityscapesEvaluator(source, cityscapes) if cityscapes else None
    pictures = detector.experiment.evaluation.pictures if pictures is None else pictures
    evaluation = evaluate_split(detector, source, pictures=pictures if out else 0, progress=progress)
    if out:
        write_json(epath.Path(out) / "metrics.json", evaluation.metrics)
        write_json(epath.Path(out) / "results.json", evaluation.results, indent=None)
    if official:
        evaluation.metrics["cityscapes"] = official(evaluation.results)
    if out and official:
        write_json(epath.Path(out) / "metrics.json", evaluation.metrics)
    if evaluation.examples:
        save_image(epath.Path(out) / "predictions.png", evaluation.sheet())
    return evaluation


def _check_fits(split: DatasetSplit, detector: Detector, name: str | os.PathLike) -> None:
    infos = split.info, detector.info
    annotated, known = (set(zip(info.category_ids, info.category_names, strict=True)) for info in infos)
    if unknown := ", ".join(f"{id_} {category}" for id_, category in sorted(annotated - known)):
        raise InputError(f"{split.directory} has classes (id and name) that {name} does not know: {unknown}")
    given, predicted = (len(info.keypoint_names) for info in infos)
    if "keypoints" in detector.experiment.model.tasks and given != predicted:
        raise InputError(f"{split.directory} has {given} keypoints, but {name} predicts {predicted}")


def evaluate_split(
    detector: Detector, split: DatasetSplit, *, pictures: int = 0, progress: Progress | None = None,
    per_class: bool = False,
) -> Evaluation:  # fmt: skip
    """Detects in every image of a split and computes the COCO metrics of all that the model predicts.

    With several processes, each detects in its share of the images, and all return the same evaluation.

    Args:
        detector: may know more classes than the data set; detections of those are left out.
        split: whose ground truth is compared.
        pictures: images whose detections are kept for the contact sheet, spread evenly over the split.
        progress: called with the number of images done (of all processes, roughly) and of all images.
        per_class: add the AP of each class.
    """
    config, info = detector.experiment.evaluation, split.info
    keep = {record.image_id for record in sheet_records(split, pictures)}
    results, examples = detect_split(detector, split, keep=keep, progress=progress)
    kinds = [KINDS[task] for task in detector.experiment.model.tasks] or ["proposals"]
    sigmas = info.keypoint_sigmas or (DEFAULT_SIGMA,) * len(info.keypoint_names)
    metrics = evaluate_coco(split.ground_truth(), results, kinds, config.max_detections, per_class, sigmas)
    return Evaluation(split, metrics, results, examples, config.picture_score)


def detect_split(
    detector: Detector, split: DatasetSplit, *, keep: Container[int] = (), progress: Progress | None = None
) -> tuple[list[dict[str, Any]], dict[int, Detections]]:
    """Detects in every image of a split, on all devices of all processes.

    Args:
        detector: as for ``evaluate_split``.
        split: of a prepared data set.
        keep: ids of images whose detections are returned too.
        progress: as for ``evaluate_split``.

    Returns:
        COCO results in the order of image ids, in each image best first; detections by image id.
    """
    model, processes = detector.experiment.model, jax.process_count()
    layout = jax.local_device_count(), detector.experiment.evaluation.images_per_device
    predict = compiled(model, detector.experiment.train.dtype, all_devices=True)
    info = detector.info if model.tasks else split.info  # proposals have no class
    known = np.isin(info.category_ids, split.info.category_ids)
    results, examples, done = [], {}, 0

    def collect(predictions, batch):
        nonlocal done
        predictions = jax.device_get(predictions)
        predictions = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), predictions)
        predictions = predictions.replace(valid=predictions.valid & known[predictions.classes])
        for index in np.flatnonzero(batch.info.valid):
            image_id, one = int(batch.info.image_ids[index]), predictions.image(index)
            sizes = batch.sizes[index].tolist(), batch.info.original_sizes[index].tolist()
            drawn = image_id in keep
            detections = to_detections(one, *sizes, model, detector.class_names, masks=drawn)
            rles = None if drawn else mask_rles(one, *sizes, model)
            results.extend(coco_results(image_id, detections, info, rles))
            examples.update({image_id: detections} if drawn else {})
        done += int(batch.info.valid.sum()) * processes
        if progress:
            progress(min(done, len(split)), len(split))

    waiting = None
    for batch in evaluation_batches(
        split, detector.experiment.data, layout[0] * layout[1], process=jax.process_index(),
        processes=processes, conventions=model.conventions,
    ):  # fmt: skip
        spread = [array.reshape(*layout, *array.shape[1:]) for array in (batch.images, batch.sizes)]
        computing = predict(detector.variables, *spread), batch
        if waiting:  # the devices compute this batch while the host pastes the masks of the one before
            collect(*waiting)
        waiting = computing
    if waiting:
        collect(*waiting)
    shares = all_gather_object((results, examples))
    results = [entry for share, _ in shares for entry in share]
    examples = {image_id: detections for _, share in shares for image_id, detections in share.items()}
    return sorted(results, key=lambda entry: entry["image_id"]), examples
