"""Sentences that say what an analysis shows and what may be done about it."""

from collections.abc import Iterator
from decimal import ROUND_DOWN, Decimal
from typing import Any

from mrcnn_jax.evaluation.analysis.analyze import MAX_SUSPECTS
from mrcnn_jax.evaluation.analysis.errors import ERRORS
from mrcnn_jax.evaluation.analysis.sizes import QUARTERS

HINTS = {
    "classification": (
        "objects are found, but as another class",
        "More examples of the classes that are confused help, as does merging classes that look alike.",
    ),
    "localisation": (
        "objects are found, but detections overlap them too little",
        "Longer training at the lower learning rates, larger images and anchors of the objects' sizes help; "
        "loosely drawn annotations set a bound.",
    ),
    "both": ("detections lie near objects of other classes", "More examples of these classes help."),
    "duplicate": (
        "objects are found more than once",
        "A lower model.box.nms_iou removes more of them.",
    ),
    "background": (
        "detections lie where nothing is annotated",
        "Look at the confident ones first, as missing annotations have the same effect; more images of what "
        "is mistaken for an object help.",
    ),
    "missed": (
        "objects are not found",
        "Larger images (data.short_edge, data.short_edge_test) and smaller anchors help against small ones, "
        "longer training and more examples against rare classes, a higher model.box.max_detections in "
        "crowded images.",
    ),
}
"""Meaning of each kind of error, and usual remedies."""
NAMES = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
_NOTABLE_GAIN, _NOTABLE_GAP, _NOTABLE_NUMBER = 1.0, 0.1, 3


def findings(analysis: dict[str, Any]) -> list[str]:
    """Returns what is most worth knowing about an analysis, the most important first."""
    if not analysis["objects"]:
        return ["Nothing is annotated in these images, so no metric is defined."]
    if not analysis["detections"]:
        return ["Nothing was detected: train longer, or lower model.box.score_threshold."]
    return [*_largest_errors(analysis), *_best_score(analysis), *_sizes(analysis), *_calibration(analysis),
            *_confusions(analysis), *_annotations(analysis)]  # fmt: skip


def confusions(analysis: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Returns the annotated class, the detected class and the number of confusions, most frequent first."""
    names, counts = analysis["confusion"]["classes"], analysis["confusion"]["counts"]
    background = len(names) - 1
    mixed = [each for each in counts if each[0] != each[1] and background not in each[:2]]
    return [(names[row], names[column], n) for row, column, n in sorted(mixed, key=lambda each: -each[2])]


def _largest_errors(analysis: dict[str, Any]) -> Iterator[str]:
    errors = analysis["errors"]
    ranked = sorted(ERRORS, key=lambda name: -(errors[name]["gain"] or 0))
    for name in ranked[:2]:
        gain, count, confident = errors[name]["gain"] or 0, errors[name]["count"], errors[name]["confident"]
        if gain >= _NOTABLE_GAIN:
            meaning, remedy = HINTS[name]
            number = f"{count:,}" if confident is None else f"{confident:,} above the best score"
            yield f"{gain:.1f} points of AP50 are lost because {meaning} ({name}: {number}). {remedy}"


def _best_score(analysis: dict[str, Any]) -> Iterator[str]:
    best = analysis["best"]
    if best is None:
        yield "No detection is correct at IoU 0.5."
        return
    score = Decimal(str(best["scores"])).quantize(Decimal("0.001"), ROUND_DOWN)  # rounded up it finds less
    yield (
        f"The minimum score {score} balances precision ({best['precision']:.2f}) and recall "
        f"({best['recall']:.2f}) best: mrcnn predict --score {score}."
    )


def _sizes(analysis: dict[str, Any]) -> Iterator[str]:
    quarters = [row for row in analysis["sizes"] if row["size"] in QUARTERS and row["AP"] is not None]
    if len(quarters) < 2:
        return
    worst, *_, best = sorted(quarters, key=lambda row: row["AP"])
    if worst["AP"] < 0.7 * best["AP"]:
        yield (
            f"The {worst['size']} of the objects ({_sides(worst)}) has AP {worst['AP']:.1f}, the "
            f"{best['size']} ({_sides(best)}) {best['AP']:.1f}."
        )


def _sides(row: dict[str, Any]) -> str:
    return f"{row['from']:.0f} to {row['to']:.0f} pixels a side"


def _calibration(analysis: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in analysis["calibration"]["bins"] if row["detections"]]
    number = sum(row["detections"] for row in rows)
    gap = sum(row["detections"] * (row["score"] - row["correct"]) for row in rows) / max(number, 1)
    if abs(gap) >= _NOTABLE_GAP:
        side = "higher" if gap > 0 else "lower"
        yield f"Scores are {side} than the share of correct detections, by {abs(gap):.2f} on average."


def _confusions(analysis: dict[str, Any]) -> Iterator[str]:
    if mixed := [each for each in confusions(analysis)[:3] if each[2] >= _NOTABLE_NUMBER]:
        parts = ", ".join(f"{annotated} detected as {detected} ({n:,})" for annotated, detected, n in mixed)
        yield f"Most frequent confusions: {parts}."


def _annotations(analysis: dict[str, Any]) -> Iterator[str]:
    suspects, score = analysis["suspected_annotations"], analysis["min_score"]
    confident = sum(each["score"] >= max(score, 0.8) for each in suspects["not_annotated"])
    if confident:
        listed = len(suspects["not_annotated"])  # at most MAX_SUSPECTS
        number = f"{confident} or more" if confident == listed == MAX_SUSPECTS else confident
        yield (
            f"Confident detections where nothing is annotated: {number}. Annotations may be missing; see the "
            "pictures."
        )
