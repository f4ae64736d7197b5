"""A detector run over a data set: its COCO metrics, its results file, its pictures."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mrcnn_jax.data.pipeline import evaluation_batches
from mrcnn_jax.data.records import RecordSource, ground_truth
from mrcnn_jax.data.transforms import decode_image, decode_mask
from mrcnn_jax.detector import Detector, compiled, to_detections
from mrcnn_jax.evaluation import coco_results, evaluate_coco
from mrcnn_jax.visualize import contact_sheet, draw_detections, draw_ground_truth


def detect_all(detector: Detector, source: RecordSource, progress: Callable[[int], None] = lambda images: None) -> list[dict[str, Any]]:
    """COCO results of every image of a split, computed on all local devices. ``progress`` is told of images done."""
    experiment = detector.experiment
    devices = jax.local_device_count()
    per_device = experiment.evaluation.images_per_device
    predict = compiled(experiment.model, experiment.train.dtype, all_devices=True)
    results, pending = [], None

    def collect(predictions, batch):
        predictions = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), predictions)
        for index in np.flatnonzero(batch.info.real):
            one = jax.tree.map(lambda leaf, index=index: leaf[index], predictions)
            detections, rles = to_detections(one, tuple(batch.sizes[index]), tuple(int(n) for n in batch.info.original_sizes[index]), as_rle=True)
            results.extend(coco_results(int(batch.info.image_ids[index]), detections, detector.info, rles))
        progress(int(batch.info.real.sum()))

    for batch in evaluation_batches(source, experiment.data, devices * per_device):
        split = [array.reshape(devices, per_device, *array.shape[1:]) for array in (batch.images, batch.sizes)]
        ahead = predict(detector.variables, *split), batch
        # the device computes this batch while the host pastes the masks of the one before
        if pending is not None:
            collect(*pending)
        pending = ahead
    if pending is not None:
        collect(*pending)
    return results


def evaluate(
    detector: Detector, source: RecordSource, progress: Callable[[int], None] = lambda images: None, per_class: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO metrics of boxes and masks in percent, and the results they were computed from."""
    results = detect_all(detector, source, progress)
    limits = detector.experiment.evaluation.max_detections
    return evaluate_coco(ground_truth(source), results, ("bbox", "segm"), limits, per_class=per_class), results


def prediction_sheet(detector: Detector, source: RecordSource, count: int, columns: int = 4) -> np.ndarray:
    """A contact sheet of predictions in ``count`` images spread evenly over the split."""
    pictures = []
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        record = source[int(index)]
        image = decode_image(record.image, f"image {record.image_id} ({record.file_name})")
        threshold = detector.experiment.evaluation.picture_score
        pictures.append(draw_detections(image, detector(image), detector.class_names, score_threshold=threshold))
    return contact_sheet(pictures, columns)


def ground_truth_sheet(source: RecordSource, count: int, columns: int = 4) -> np.ndarray:
    """A contact sheet of ``count`` images of a split with their annotated objects."""
    pictures = []
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        record = source[int(index)]
        objects = record.objects
        image = decode_image(record.image, f"image {record.image_id} ({record.file_name})")
        masks = np.zeros((len(objects.ids), record.height, record.width), bool)
        for mask, rle in zip(masks, objects.rles, strict=True):
            mask[:] = decode_mask(rle, record.height, record.width)
        keypoints = objects.keypoints if source.info.keypoint_names else None
        pictures.append(draw_ground_truth(image, objects.boxes, objects.classes, masks, source.info.category_names,
                                          keypoints=keypoints, skeleton=source.info.skeleton))  # fmt: skip
    return contact_sheet(pictures, columns)
