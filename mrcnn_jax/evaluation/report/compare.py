"""Comparison of two results files on the same ground truth."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mrcnn_jax.data.dataset import is_prepared, open_dataset, split_names
from mrcnn_jax.data.formats.coco_json import load_json
from mrcnn_jax.errors import InputError
from mrcnn_jax.evaluation.analysis.comparison import RESAMPLES, compare
from mrcnn_jax.evaluation.analysis.matches import Matches, read_matches
from mrcnn_jax.evaluation.coco import DEFAULT_SIGMA, Kind, evaluate_coco
from mrcnn_jax.evaluation.coco_checks import check_ground_truth
from mrcnn_jax.evaluation.coco_values import read_entries
from mrcnn_jax.evaluation.report.files import ANALYSIS
from mrcnn_jax.paths import require_local

_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


class Results(NamedTuple):
    """A results file, and what an evaluation wrote beside it."""

    path: Path
    entries: list[dict[str, Any]]
    analysis: dict[str, Any]  # empty if there is none


def compare_results(
    first: str | os.PathLike, second: str | os.PathLike, truth: str | os.PathLike | None = None,
    split: str | None = None, *, resamples: int = RESAMPLES, seed: int = 0,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Compares two results files with bootstrap intervals over images.

    Args:
        first: directory of a run, of an evaluation, or a results file.
        second: likewise.
        truth: prepared data set, or annotation file of COCO; by default the data set that both were evaluated
            on.
        split: of the data set; by default the one of the evaluations, or the validation split.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        By kind, what ``compare`` returns. Classes that only one of the two detectors knows are left out.

    Raises:
        InputError: something cannot be read, or the ground truth is neither given nor the same.
    """
    pair = [_open(each) for each in (first, second)]
    ground_truth, sigmas = _open_truth(pair, truth, split)
    check_ground_truth(ground_truth)
    found: dict[str, dict[str, Any]] = {}
    for kind in _common_kinds(pair, ground_truth):
        limits = _limits(pair, kind)
        sides = [_matches(ground_truth, each, kind, limits, sigmas) for each in pair]
        found[kind] = compare(*sides, resamples, seed, _common_classes(pair, kind))
    return found


def _matches(truth: dict[str, Any], results: Results, kind: Kind, limits: list[int], sigmas: Any) -> Matches:
    found: list[Matches] = []
    try:
        evaluate_coco(
            truth, results.entries, [kind], limits, keypoint_sigmas=sigmas,
            inspect=lambda _, evaluated: found.append(read_matches(evaluated)),
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"{results.path}: {error}") from error
    return found[0]


def _open(path: str | os.PathLike) -> Results:
    require_local(path, "the evaluation")
    given = Path(path)
    file = given
    if given.is_dir():
        files = given / "results.json", given / "evaluation" / "results.json"
        file = next((file for file in files if file.exists()), None)
        if file is None:
            raise InputError(f"{given} holds no results.json: evaluate it first (mrcnn evaluate {given})")
    entries = load_json(file)
    if not isinstance(entries, list):
        raise InputError(f"{file} is not a COCO results file: it must hold a JSON array of entries")
    read_entries(entries, f"{file}")
    beside = file.with_name(ANALYSIS)
    analysis = load_json(beside) if given.is_dir() and beside.exists() else {}
    if analysis != {} and not _is_analysis(analysis):
        raise InputError(f"{beside} is not an analysis: evaluate again")
    return Results(file, entries, analysis)


def _is_analysis(content: Any) -> bool:
    """Tests for what a comparison needs of an analysis."""
    kinds = content.get("kinds") if isinstance(content, dict) else None
    if not isinstance(kinds, dict) or any(
        not isinstance(content.get(name), str | None) for name in ("dataset", "split")
    ):
        return False
    return all(
        isinstance(kind, dict)
        and all(isinstance(kind.get(name), list) for name in ("classes", "max_detections"))
        and all(isinstance(row, dict) and "class" in row for row in kind["classes"])
        and all(isinstance(limit, int) for limit in kind["max_detections"] or [None])
        for kind in kinds.values()
    )


def _open_truth(
    pair: list[Results], truth: str | os.PathLike | None, split: str | None
) -> tuple[dict[str, Any], Any]:
    """Returns a COCO dictionary, and tolerances of its keypoints or None."""
    if truth is None:
        origins = [(each.analysis.get("dataset"), each.analysis.get("split")) for each in pair]
        for each, origin in zip(pair, origins, strict=True):
            if None in origin:
                raise InputError(f"nothing says what {each.path} was evaluated on: give --truth")
        if origins[0] != origins[1]:
            shown_ = " and ".join(f"{dataset} ({part})" for dataset, part in origins)
            raise InputError(f"the two were evaluated on different data, {shown_}: give --truth")
        truth, split = origins[0][0], split or origins[0][1]
    elif split and Path(truth).is_file():
        kind = "a split belongs to a prepared data set, not to the annotation file"
        raise InputError(f"{kind} {truth}: leave --split out")
    require_local(truth, "the data set")
    if not is_prepared(truth):
        if Path(truth).is_dir():
            raise InputError(f"{truth} is neither a prepared data set nor an annotation file")
        ground_truth = load_json(truth)
        if not isinstance(ground_truth, dict):
            raise InputError(f"{truth} is not a COCO data set: it must hold a JSON object")
        return ground_truth, None
    names = split_names(truth)
    source = open_dataset(truth, split or ("validation" if "validation" in names else names[0]))
    info = source.info
    sigmas = info.keypoint_sigmas or (DEFAULT_SIGMA,) * len(info.keypoint_names)
    return source.ground_truth(), sigmas or None


def _common_kinds(pair: list[Results], truth: Mapping[str, Any]) -> list[str]:
    """Returns the kinds that the objects and both results files have; an empty file has all of them."""
    return [
        kind
        for kind, field in _FIELDS.items()
        if any(entry.get(field) for entry in truth["annotations"])
        and all(not each.entries or field in each.entries[0] for each in pair)
        and all(not each.analysis or kind in each.analysis["kinds"] for each in pair)
    ] or ["bbox"]


def _common_classes(pair: list[Results], kind: str) -> list[str] | None:
    """Returns the names of the classes that both were evaluated on; None if that is not known."""
    known = [[row["class"] for row in each["classes"]] for each in _analyses(pair, kind)]
    return [name for name in known[0] if name in known[-1]] if known else None


def _limits(pair: list[Results], kind: str) -> list[int]:
    given = [each["max_detections"] for each in _analyses(pair, kind)]
    return max(given, key=max, default=[1, 10, 100])


def _analyses(pair: list[Results], kind: str) -> list[dict[str, Any]]:
    """Returns the analyses of a kind, of those that have one."""
    return [each.analysis["kinds"][kind] for each in pair if kind in each.analysis.get("kinds", ())]
