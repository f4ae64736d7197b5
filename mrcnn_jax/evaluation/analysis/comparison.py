"""Comparison of two sets of detections on the same images, with bootstrap intervals over images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.analysis.average_precision import average_precision
from mrcnn_jax.evaluation.analysis.curves import overall_curve
from mrcnn_jax.evaluation.analysis.errors import find_errors, gains
from mrcnn_jax.evaluation.analysis.matches import Matches
from mrcnn_jax.typing import Float

RESAMPLES = 1000
LEVEL = 0.95
"""Share of the bootstrap samples inside an interval."""
_CHUNK_BYTES = 1 << 26


def compare(
    first: Matches, second: Matches, resamples: int = RESAMPLES, seed: int = 0,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Compares two evaluations of the same images.

    Images are drawn with replacement, the same for both, as many as there are.

    Args:
        first: of one detector.
        second: of another, on the same ground truth.
        resamples: number of draws.
        seed: of the draws.
        classes: names of those that are compared; by default all.

    Returns:
        {"metrics": {"AP", "AP50", "AP75"}, "classes": {name: its AP}, "errors": {kind: its gain in AP50},
        "best": [of first, of second]}. Metrics are {"first", "second", "difference", "low", "high"} in
        percent: second minus first, and the interval that holds LEVEL of the resampled differences. Errors
        have no interval. None stands for what is undefined.

    Raises:
        InputError: the images, classes or objects of the two differ.
    """
    _require_same_truth(first, second)
    chosen = [index for index, name in enumerate(first.class_names) if classes is None or name in classes]
    points = [_precisions(each, chosen, np.ones((1, len(each.image_ids)))) for each in (first, second)]
    drawn = [[], []]
    for weights in _draws(len(first.image_ids), resamples, seed, first, second):
        for parts, each in zip(drawn, (first, second), strict=True):
            parts.append(_precisions(each, chosen, weights))
    samples = [np.concatenate([np.zeros((len(chosen), 10, 0)), *parts], axis=2) for parts in drawn]
    rows = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    metrics = {
        name: _interval(*(_mean(each[:, row], (0, 1)) for each in (*points, *samples)))
        for name, row in rows.items()
    }
    per_class = {
        first.class_names[index]: _interval(*(_mean(each[place], 0) for each in (*points, *samples)))
        for place, index in enumerate(chosen)
    }
    best = [overall_curve(each).best() for each in (first, second)]
    return {"metrics": metrics, "classes": per_class, "errors": _errors(first, second, chosen), "best": best}


def _require_same_truth(first: Matches, second: Matches) -> None:
    same = first.image_ids == second.image_ids and first.class_names == second.class_names
    pairs = zip(first.objects[:4], second.objects[:4], strict=True)
    if not same or any(not np.array_equal(one, other) for one, other in pairs):
        raise InputError("only evaluations on the same images, classes and objects can be compared")


def _draws(
    images: int, resamples: int, seed: int, *matches: Matches
) -> Iterator[Float[np.ndarray, "B n"]]:
    """Yields how often each of n images is drawn, for some resamples at once, as many as memory allows."""
    generator = np.random.default_rng(seed)
    widest = max(1, images, *(np.bincount(each.detections.classes, minlength=1).max() for each in matches))
    chunk = max(1, int(_CHUNK_BYTES / (8 * widest)))
    for begin in range(0, resamples if images else 0, chunk):
        count = min(chunk, resamples - begin)
        yield generator.multinomial(images, np.full(images, 1 / images), count).astype(float)


def _precisions(
    matches: Matches, chosen: Sequence[int], weights: Float[np.ndarray, "B n"]
) -> Float[np.ndarray, "K T B"]:
    """Returns the AP of each chosen class at each IoU threshold, for B weightings of the images."""
    found, objects = matches.detections, matches.objects
    ends = np.searchsorted(found.classes, np.arange(len(matches.class_names) + 1))
    values = np.full((len(chosen), len(found.correct), len(weights)), np.nan)
    for place, class_ in enumerate(chosen):
        members = slice(ends[class_], ends[class_ + 1])
        own = objects.images[(objects.classes == class_) & ~objects.ignored]
        values[place] = average_precision(
            found.correct[:, members], found.ignored[:, members], weights[:, own].sum(axis=1),
            weights[:, found.images[members]],
        )  # fmt: skip
    return values


def _mean(values: Float[np.ndarray, "*n B"], axes: int | tuple[int, ...]) -> Float[np.ndarray, "B"]:
    """Returns the mean of what is defined, in percent; NaN if nothing is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return 100 * np.where(defined, values, 0).sum(axis=axes) / defined.sum(axis=axes)


def _interval(
    first: Float[np.ndarray, "1"], second: Float[np.ndarray, "1"], drawn_first: Float[np.ndarray, "B"],
    drawn_second: Float[np.ndarray, "B"],
) -> dict[str, float | None]:  # fmt: skip
    differences = drawn_second - drawn_first
    differences = differences[~np.isnan(differences)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(differences, [tail, 1 - tail]) if len(differences) else (np.nan, np.nan)
    names = "first", "second", "difference", "low", "high"
    values = map(float, (first[0], second[0], second[0] - first[0], low, high))
    return {name: None if np.isnan(value) else value for name, value in zip(names, values, strict=True)}


def _errors(first: Matches, second: Matches, chosen: Sequence[int]) -> dict[str, dict[str, float | None]]:
    sides = [gains(each, find_errors(each)) for each in (first, second)]
    undefined = np.zeros(0)
    return {
        name: _interval(*(_mean(side[name][chosen][:, None], 0) for side in sides), undefined, undefined)
        for name in sides[0]
    }
