"""AP by the size of objects: COCO's three sizes, and quarters of the set's own objects."""

from typing import Any

import numpy as np

from mrcnn_jax.evaluation.analysis.average_precision import class_precisions
from mrcnn_jax.evaluation.analysis.matches import Matches
from mrcnn_jax.evaluation.coco import percent

QUARTERS = "smallest quarter", "second quarter", "third quarter", "largest quarter"


def by_size(matches: Matches) -> list[dict[str, Any]]:
    """Computes AP by size.

    Returns:
        [{"size", "from", "to", "objects", "AP", "AP50", "found"}]: the side of a square of the object's area,
        in pixels (None: no bound), AP in percent, and the share of objects, 0 to 1, that some detection of
        their class is on at IoU 0.5. COCO's sizes are pycocotools'. For quarters of equal numbers of objects,
        detections on objects of another quarter do not count, nor do unmatched ones of another size.
    """
    areas, precision = matches.objects.areas[~matches.objects.ignored], matches.evaluated.curves.precision
    rows = [
        _row(matches, label, *bounds, percent(precision[..., index]), percent(precision[0, ..., index]))
        for index, (label, bounds) in enumerate(matches.evaluated.input.ranges.items())
        if label != "all"
    ]
    if len(np.unique(areas)) < len(QUARTERS):
        return rows
    edges = np.quantile(areas, np.linspace(0, 1, len(QUARTERS) + 1))
    ends = np.append(np.nextafter(edges[1:-1], -np.inf), edges[-1])  # an object is in one quarter only
    for label, low, high in zip(QUARTERS, edges, ends, strict=False):
        rows.append(_row(matches, label, low, high, *_precisions(matches, low, high)))
    return rows


def _row(
    matches: Matches, label: str, low: float, high: float, ap: float | None, ap50: float | None
) -> dict[str, Any]:
    objects = matches.objects
    chosen = (objects.areas >= low) & (objects.areas <= high) & ~objects.ignored
    sides = [round(float(np.sqrt(area)), 1) for area in (low, high)]
    return {
        "size": label, "from": sides[0], "to": sides[1] if high < 1e9 else None, "objects": int(chosen.sum()),
        "AP": ap, "AP50": ap50,
        "found": float(objects.found[0, chosen].mean()) if chosen.any() else None,
    }  # fmt: skip


def _precisions(matches: Matches, low: float, high: float) -> tuple[float | None, float | None]:
    """Returns AP over all IoU thresholds and AP50, in percent."""
    detections, objects = matches.detections, matches.objects
    inside = (objects.areas >= low) & (objects.areas <= high)
    numbers = np.bincount(objects.classes[inside & ~objects.ignored], minlength=len(matches.class_names))
    of_size, values = (detections.areas >= low) & (detections.areas <= high), []
    for matched, ignored in zip(detections.matches, detections.ignored, strict=True):
        counted = ~ignored & np.where(matched >= 0, inside[matched], of_size)
        chosen = detections.classes[counted], detections.scores[counted], matched[counted] >= 0
        values.append(class_precisions(*chosen, numbers))
    return tuple(percent(np.nan_to_num(part, nan=-1)) for part in (np.array(values), values[0]))
