"""A detector run over a data set: its COCO metrics, its results file, its pictures."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from mrcnn_jax.data.dataset import DatasetSplit, Record, ground_truth
from mrcnn_jax.data.pipeline import evaluation_batches
from mrcnn_jax.data.transforms import decode_mask, decode_record
from mrcnn_jax.distributed import all_gather_object
from mrcnn_jax.evaluation.coco import DEFAULT_SIGMA, coco_results, evaluate_coco
from mrcnn_jax.inference.detector import Detector, compiled, to_detections
from mrcnn_jax.structures import Detections
from mrcnn_jax.visualize.draw import contact_sheet, draw_detections, draw_ground_truth

KINDS = {"boxes": "bbox", "masks": "segm", "keypoints": "keypoints"}
"""What COCO calls the evaluation of each task."""


def detect_all(detector: Detector, source: DatasetSplit, progress: Callable[[int], None] = lambda images: None) -> list[dict[str, Any]]:
    """COCO results of every image of a split, in the order of image ids, computed on all devices. ``progress`` is told of images done, about.

    With several processes, each detects in its share of the images, at its own pace, and all get the results of all.
    The detector may know more classes than the data set: detections of those count for nothing, and are left out.
    """
    experiment = detector.experiment
    devices = jax.local_device_count()
    per_device = experiment.evaluation.images_per_device
    predict = compiled(experiment.model, experiment.train.dtype, all_devices=True)
    info = detector.info if experiment.model.tasks else source.info  # proposals have no class
    results, pending, categories = [], None, set(source.info.category_ids)

    def collect(predictions, batch):
        predictions = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), predictions)
        for index in np.flatnonzero(batch.info.real):
            one = jax.tree.map(lambda leaf, index=index: leaf[index], predictions)
            original = tuple(int(n) for n in batch.info.original_sizes[index])
            detections, rles = to_detections(one, tuple(batch.sizes[index]), original, experiment.model, as_rle=True)
            entries = coco_results(int(batch.info.image_ids[index]), detections, info, rles)
            results.extend(entry for entry in entries if entry["category_id"] in categories)
        progress(int(batch.info.real.sum()) * processes)

    processes = jax.process_count()
    for batch in evaluation_batches(source, experiment.data, devices * per_device, process=jax.process_index(), processes=processes,
                                    conventions=experiment.model.conventions):
        split = [array.reshape(devices, per_device, *array.shape[1:]) for array in (batch.images, batch.sizes)]
        ahead = predict(detector.variables, *split), batch
        # the device computes this batch while the host pastes the masks of the one before
        if pending is not None:
            collect(*pending)
        pending = ahead
    if pending is not None:
        collect(*pending)
    results = [entry for share in all_gather_object(results) for entry in share]
    return sorted(results, key=lambda entry: entry["image_id"])  # of one image: best first, as they came


def evaluate(
    detector: Detector, source: DatasetSplit, progress: Callable[[int], None] = lambda images: None, per_class: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO metrics in percent of all that the model predicts, and the results they were computed from."""
    results = detect_all(detector, source, progress)
    limits = detector.experiment.evaluation.max_detections
    kinds = [KINDS[task] for task in detector.experiment.model.tasks] or ["proposals"]
    sigmas = source.info.keypoint_sigmas or (DEFAULT_SIGMA,) * len(source.info.keypoint_names)
    return evaluate_coco(ground_truth(source), results, kinds, limits, per_class=per_class, keypoint_sigmas=sigmas), results


def prediction_sheet(results: list[dict[str, Any]], source: DatasetSplit, count: int, score_threshold: float = 0.5) -> np.ndarray:
    """A contact sheet of COCO results (of detect_all) in ``count`` images spread evenly over the split."""
    info = source.info
    class_of = {category: index for index, category in enumerate(info.category_ids)}

    def picture(record: Record) -> np.ndarray:
        found = [entry for entry in results if entry["image_id"] == record.image_id]
        boxes = np.array([entry["bbox"] for entry in found], np.float32).reshape(-1, 4)
        masks = keypoints = None
        if found and "segmentation" in found[0]:
            masks = _decode([entry["segmentation"]["counts"] for entry in found], record)
        if info.keypoint_names:
            joints = len(info.keypoint_names)
            nowhere = [0] * (3 * joints)  # classes without keypoints, and models that predict none
            keypoints = np.array([entry.get("keypoints", nowhere) for entry in found], np.float32).reshape(-1, joints, 3)
        detections = Detections(
            boxes=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            scores=np.array([entry["score"] for entry in found], np.float32),
            class_ids=np.array([class_of[entry["category_id"]] for entry in found], np.int32),
            masks=masks,
            keypoints=keypoints,
        )
        return draw_detections(decode_record(record), detections, info.category_names, score_threshold=score_threshold, skeleton=info.skeleton)

    return _sheet(source, count, picture)


def ground_truth_sheet(source: DatasetSplit, count: int) -> np.ndarray:
    """A contact sheet of ``count`` images of a split with their annotated objects."""
    info = source.info

    def picture(record: Record) -> np.ndarray:
        objects = record.objects
        keypoints = objects.keypoints if info.keypoint_names else None
        return draw_ground_truth(decode_record(record), objects.boxes, objects.classes, _decode(objects.rles, record), info.category_names,
                                 keypoints=keypoints, skeleton=info.skeleton)  # fmt: skip

    return _sheet(source, count, picture)


def _decode(rles, record):
    masks = [decode_mask(rle, record.height, record.width) for rle in rles]
    return np.array(masks, bool).reshape(-1, record.height, record.width)


def _sheet(source, count, picture, columns=4):
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
    return contact_sheet([picture(source[int(index)]) for index in chosen], columns)
