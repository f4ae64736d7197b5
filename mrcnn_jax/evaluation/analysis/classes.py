"""A table of all classes."""

from typing import Any

import numpy as np

from mrcnn_jax.evaluation.analysis.curves import ScoreCurve
from mrcnn_jax.evaluation.analysis.matches import Matches
from mrcnn_jax.evaluation.coco import percent
from mrcnn_jax.typing import Float


def class_table(
    matches: Matches, curves: list[ScoreCurve], gains: dict[str, Float[np.ndarray, "K"]]
) -> list[dict[str, Any]]:
    """Describes each class.

    Args:
        matches: of all classes.
        curves: of each class.
        gains: in AP50 by kind of error, of which a class's table has the largest.

    Returns:
        [{"class", "objects", "detections", "AP", "AP50", "AR", "best", "error", "gain"}]: pycocotools' AP,
        AP50 and AR in percent, the score with the best F1, and the kind of error that costs most AP50. None
        stands for what is undefined.
    """
    precision = matches.evaluated.curves.precision[..., 0]
    recall = matches.evaluated.curves.recall[..., 0, -1]
    detections = np.bincount(matches.detections.classes, minlength=len(curves))
    names, values = list(gains), np.array(list(gains.values()))
    rows = []
    for index, (name, number) in enumerate(
        zip(matches.class_names, matches.objects_per_class(), strict=True)
    ):
        worst = int(np.argmax(values[:, index])) if number and values[:, index].max() > 0 else None
        rows.append({
            "class": name, "objects": int(number), "detections": int(detections[index]),
            "AP": percent(precision[..., index]), "AP50": percent(precision[0, :, index]),
            "AR": percent(recall[..., index]), "best": curves[index].best(),
            "error": None if worst is None else names[worst],
            "gain": None if worst is None else float(100 * values[worst, index]),
        })  # fmt: skip
    return rows
