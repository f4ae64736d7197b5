"""Classes and keypoints of a detector and of a data set, matched by name."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from mrcnn_jax.errors import InputError
from mrcnn_jax.messages import listed
from mrcnn_jax.structures import DatasetInfo


class Match(NamedTuple):
    """Correspondence of the classes and keypoints of a detector to those of a data set."""

    info: DatasetInfo  # the detector's classes in its order, with the set's ids; -1 for those that it lacks
    category_ids: frozenset[int]  # of the set's classes that the detector knows
    keypoints: tuple[int, ...] | None  # the detector's keypoint for each of the set's; None: not scored
    warnings: tuple[str, ...]

    def restrict(self, ground_truth: dict[str, Any]) -> dict[str, Any]:
        """Returns a COCO dictionary without the classes that the detector does not know."""
        if all(category["id"] in self.category_ids for category in ground_truth["categories"]):
            return ground_truth
        known = {"annotations": "category_id", "categories": "id"}
        return ground_truth | {
            part: [entry for entry in ground_truth[part] if entry[key] in self.category_ids]
            for part, key in known.items()
        }


def match_dataset(
    known: DatasetInfo, dataset: DatasetInfo, tasks: Sequence[str], name: Any, origin: Any
) -> Match:
    """Matches the classes of a data set with a detector's by name, whatever their ids and order.

    Names that differ in letter case, spaces, hyphens or underscores match where no other does. Keypoints
    match likewise, or by number where there are as many of them.

    Args:
        known: the detector's classes and keypoints.
        dataset: the data set's.
        tasks: the detector's; without any it predicts proposals, which have no class.
        name: of the detector, in messages.
        origin: of the data set, in messages.

    Raises:
        InputError: the detector knows none of the set's classes.
    """
    if not tasks:
        return Match(dataset, frozenset(dataset.category_ids), None, ())
    found = _match_classes(known, dataset)
    ids = tuple(-1 if index is None else dataset.category_ids[index] for index in found)
    unknown = [repr(label) for index, label in enumerate(dataset.category_names) if index not in found]
    if len(unknown) == dataset.num_classes:
        raise InputError(
            f"{origin} and {name} have no class in common: the set has {_some(unknown)}, the detector knows "
            f"{_some([repr(label) for label in known.category_names])}"
        )
    warnings = []
    if unknown:
        warnings.append(f"{name} does not know {_some(unknown)} of {origin}; their objects are not scored")
    keypoints = None
    if "keypoints" in tasks:
        keypoints, message = _match_keypoints(known.keypoint_names, dataset.keypoint_names, name, origin)
        warnings += [message] if message else []
    info = known._replace(category_ids=ids)
    return Match(info, frozenset(ids) - {-1}, keypoints, tuple(warnings))


def _match_classes(known: DatasetInfo, dataset: DatasetInfo) -> list[int | None]:
    """Returns the index in the data set of each of the detector's classes; None for those that it lacks."""
    ours, theirs = (
        list(zip(each.category_names, each.category_ids, strict=True)) for each in (known, dataset)
    )
    found: list[int | None] = [None] * len(ours)
    # a repeated name is matched by its id, or not at all
    for key in (lambda each: each, lambda each: each[0], lambda each: _normalized(each[0])):
        free = [index for index in range(len(theirs)) if index not in found]
        open_ = [index for index in range(len(ours)) if found[index] is None]
        places = {key(theirs[index]): index for index in free}
        counts = Counter(key(theirs[index]) for index in free), Counter(key(ours[index]) for index in open_)
        for index in open_:
            if counts[0][key(ours[index])] == counts[1][key(ours[index])] == 1:
                found[index] = places[key(ours[index])]
    return found


def _match_keypoints(
    known: Sequence[str], dataset: Sequence[str], name: Any, origin: Any
) -> tuple[tuple[int, ...] | None, str | None]:
    """Returns the detector's keypoint for each of the set's, or None, and a warning, or None."""
    for ours, theirs in ((known, dataset), (list(map(_normalized, known)), list(map(_normalized, dataset)))):
        if theirs and len(set(ours)) == len(ours) and set(theirs) <= set(ours):
            return tuple(ours.index(each) for each in theirs), None
    if len(known) == len(dataset):
        message = f"the keypoints of {origin} have other names than those of {name}"
        return tuple(range(len(known))), f"{message}: they are matched by number"
    return None, (
        f"{origin} has {len(dataset)} keypoints, but {name} predicts {len(known)} others: keypoints are not "
        "scored"
    )


def _normalized(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " -_\t")


def _some(names: Sequence[str]) -> str:
    return listed(names, 10, counted=True)
