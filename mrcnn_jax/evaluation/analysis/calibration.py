"""Calibration: how far scores are probabilities of being correct."""

from typing import Any

import numpy as np

from mrcnn_jax.evaluation.analysis.matches import Matches

BINS = 10


def calibration(matches: Matches, bins: int = BINS) -> dict[str, Any]:
    """Compares scores with the share of correct detections, at IoU 0.5.

    Returns:
        {"bins": [{"from", "to", "detections", "score", "correct"}], "expected_error", "largest_error"}: the
        mean score and the share of correct detections of each bin, None in an empty one. The expected error
        is the mean distance of the two, weighted by the numbers of detections, the largest that of the worst
        bin; None without detections.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 2.
    """
    counted = ~matches.detections.ignored[0]
    scores, correct = matches.detections.scores[counted], matches.detections.correct[0, counted]
    places = np.clip((scores * bins).astype(int), 0, bins - 1)
    numbers, total, hits = (
        np.bincount(places, weights, bins) for weights in (None, scores, correct.astype(float))
    )
    filled = numbers > 0
    distances = np.abs(total - hits)[filled] / numbers[filled]
    rows = [
        {
            "from": index / bins, "to": (index + 1) / bins, "detections": int(number),
            "score": round(float(total[index] / number), 6) if number else None,
            "correct": round(float(hits[index] / number), 6) if number else None,
        }
        for index, number in enumerate(numbers)
    ]  # fmt: skip
    expected = float(distances @ numbers[filled] / numbers.sum()) if filled.any() else None
    return {"bins": rows, "expected_error": expected, "largest_error": max(distances.tolist(), default=None)}
