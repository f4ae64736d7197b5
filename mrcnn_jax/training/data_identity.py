"""Recognition of the data set that a run was trained on: its classes, images and objects."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from mrcnn_jax.checkpoint import Checkpoint
from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.catalog import DATA_FOLDER, EMBEDDED
from mrcnn_jax.data.contents import Contents
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.mixture import Mixture
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.training.data_checks import Statistics, split_statistics


def contents_of(splits: Sequence[DatasetSplit | Mixture]) -> dict[str, Contents]:
    """Returns the contents of splits by name, but for sets prepared before they were recorded; those of
    further data sets to train on are "train (2)" and so on."""
    return recorded_contents({
        f"{split.split} ({number})" if number > 1 else split.split: split_statistics(part)
        for split in splits
        for number, part in enumerate(split.parts, 1)
    })  # fmt: skip


def recorded_contents(statistics: Mapping[str, Statistics]) -> dict[str, Contents]:
    """Returns the contents among the statistics of splits, by name."""
    return {
        name: Contents(*(values[field] for field in Contents._fields))
        for name, values in statistics.items()
        if values.keys() >= set(Contents._fields)
    }


def same_place(path: str, other: str) -> bool:
    """Returns whether two spellings name one data set or directory."""
    places = [DATA_FOLDER / name if name in EMBEDDED else Path(name).expanduser() for name in (path, other)]
    return path == other or places[0].resolve() == places[1].resolve()


def compare_data(
    checkpoint: Checkpoint, config: DataConfig, info: DatasetInfo, contents: dict[str, Contents],
    directory: object,
) -> list[str]:  # fmt: skip
    """Compares the data set with the one that a run was trained on.

    Args:
        checkpoint: of the run.
        config: of the data set now.
        info: of the data set now.
        contents: of its splits now.
        directory: of the run, for messages.

    Returns:
        What has changed, as sentences: images and objects, or the place of the data set.

    Raises:
        InputError: the classes or keypoints have changed, or it is another data set in another place.
    """
    pairs = [*zip_longest(_places(checkpoint.experiment.data), _places(config), fillvalue="none")]
    before, place = (" and ".join(places) for places in zip(*pairs, strict=True))
    if changes := _changed_classes(checkpoint.info, info):
        raise InputError(
            f"{directory} was trained with other classes or keypoints than {place} has now ({changes}): "
            "restore the data set, or choose another --directory"
        )
    changes = changed_contents(checkpoint.contents or {}, contents)
    if all(same_place(*pair) for pair in pairs):
        summary = "; ".join(changes)
        return [f"{place} has changed since {directory} was last saved ({summary}): metrics from before and "
                "after cannot be compared"] if changes else []  # fmt: skip
    known = (checkpoint.contents or {}).keys() & contents.keys()
    if changes or not known or "none" in sum(pairs, ()):
        reason = f": {'; '.join(changes)}" if changes else ""
        raise InputError(
            f"{directory} holds another run (data.dataset differs, {place} for {before}{reason}): choose "
            "another --directory, or give the same data set"
        )
    return [f"{place} is the data set that the run knows as {before}, in another place"]


def _places(config: DataConfig) -> tuple[str, ...]:
    return (config.dataset, *config.extra_datasets)


def _changed_classes(before: DatasetInfo, now: DatasetInfo) -> str:
    """Returns the first difference of names and order; ids may change, as the model has none."""
    pairs = [*zip_longest(before.category_names, now.category_names)]
    pairs += zip_longest(before.keypoint_names, now.keypoint_names)
    changed = [(index, *pair) for index, pair in enumerate(pairs) if pair[0] != pair[1]]
    if not changed:
        return ""
    _, old, new = changed[0]
    more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{new or 'none'} in place of {old or 'none'}{more}"


def changed_contents(before: dict[str, Contents], now: dict[str, Contents]) -> list[str]:
    """Returns what has changed in each split."""
    changes = []
    for split in before.keys() & now.keys():
        old, new = before[split], now[split]
        parts = []
        for kind, label in (("image", "images"), ("object", "labels")):
            counts = [getattr(contents, f"{kind}s") for contents in (old, new)]
            if counts[0] != counts[1]:
                parts.append(f"{counts[0]:,} {kind}s before, {counts[1]:,} now")
            elif getattr(old, f"{kind}_digest") != getattr(new, f"{kind}_digest"):
                parts.append(f"other {label}")
        if parts:
            changes.append(f"{split}: {', '.join(parts)}")
    return sorted(changes)
