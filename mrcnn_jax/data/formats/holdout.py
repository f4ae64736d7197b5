"""Random division of images into splits, stratified by class; groups of images stay together."""

import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mrcnn_jax.errors import InputError


class SplitSample(NamedTuple):
    """One of the splits that the images of a listing are divided into."""

    split: str
    amounts: tuple[tuple[str, int | float], ...]  # number or share of images of each split but "train"
    seed: int = 0
    group: str | None = None  # see ``group_of``

    def counts(self, images: int) -> dict[str, int]:
        """Returns the number of images to sample for each split."""
        return {
            split: amount if isinstance(amount, int) else max(1, round(amount * images))
            for split, amount in self.amounts
        }

    def divide(self, names: Mapping[int, str], classes: Mapping[int, Collection[int]]) -> dict[int, str]:
        """Samples images for the splits but "train".

        Args:
            names: file names by image id.
            classes: the classes that each image shows.

        Returns:
            The split of each sampled image.

        Raises:
            InputError: there are too few groups.
        """
        groups = {id_: group_of(names[id_], self.group) for id_ in classes} if self.group else None
        if groups and len(set(groups.values())) <= len(self.amounts):
            count = f"{len(groups)} images are in {len(set(groups.values()))} groups"
            raise InputError(f"{count} by --group {self.group}, too few for {len(self.amounts) + 1} splits")
        sampled: dict[int, str] = {}
        for split, count in self.counts(len(classes)).items():
            rest = {id_: shown for id_, shown in classes.items() if id_ not in sampled}
            sampled |= dict.fromkeys(hold_out(rest, count, self.seed, groups), split)
        return sampled


def require_sampling(validation_images: int, split: Sequence[float], group: str | None, seed: int) -> None:
    """Raises InputError if images cannot be sampled so; see ``data.prepare.prepare``."""
    for name, number in (("validation_images", validation_images), ("seed", seed)):
        if number < 0:
            raise InputError(f"{name} is {number}, but must be 0 or more")
    if split and not (len(split) in (2, 3) and min(split) > 0 and abs(sum(split) - 1) < 1e-6):
        given = " ".join(f"{share:g}" for share in split)
        allowed = "2 or 3 positive numbers that sum to 1, of train, validation and test"
        raise InputError(f"the split is {given}, but must be {allowed}")
    if split and validation_images:
        raise InputError("validation_images and split are given, but images are sampled by one of them")
    if group and not (split or validation_images):
        raise InputError(f"group is {group!r}, but neither validation_images nor split samples images")


def group_of(name: str, group: str) -> str:
    """Returns the group of an image by its file name.

    Args:
        name: of the file, with folders.
        group: "folder", for the images of one folder; or a text, for the images whose names, without their
            folders, are equal before its first occurrence.
    """
    name = name.replace("\\", "/")
    if group == "folder":
        return posixpath.dirname(name)
    return posixpath.splitext(posixpath.basename(name))[0].partition(group)[0]


def hold_out(
    classes: Mapping[int, Collection[int]],
    count: int,
    seed: int = 0,
    groups: Mapping[int, str] | None = None,
) -> set[int]:
    """Samples images so that, as far as possible, every class is among them and among the others.

    The rarest class goes first: it gives its share of ``count``, rounded, but at least one image if it has
    two, and never its last; then the next rarest, and at last images at random. The result depends on the
    ids, the classes and the seed alone, not on any order. Whole groups are sampled as if each were one image,
    as long as there are not more than ``count`` images; at least one group, and never all.

    Args:
        classes: the classes that each image shows, by image id; an image may show none.
        count: number of images to sample, smaller than the number of images.
        seed: of the random order.
        groups: the group of each image; each is its own if None.

    Returns:
        The ids of the sampled images.
    """
    members: dict[int, list[int]] = {}  # images of each group, by its first
    first: dict[str | int, int] = {}
    for id_ in sorted(classes):
        leader = first.setdefault(groups[id_] if groups else id_, id_)
        members.setdefault(leader, []).append(id_)
    shown = {leader: {class_ for id_ in ids for class_ in classes[id_]} for leader, ids in members.items()}
    sampled = _sample(shown, {leader: len(ids) for leader, ids in members.items()}, count, seed)
    return {id_ for leader in sampled for id_ in members[leader]}


def _sample(shown: dict[int, set[int]], sizes: dict[int, int], count: int, seed: int) -> set[int]:
    """Samples groups of images by the classes that they show."""
    groups, images = list(shown), sum(sizes.values())
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    members: dict[int, list[int]] = {}
    for group in order:
        for class_ in shown[group]:
            members.setdefault(class_, []).append(group)
    total = {class_: sum(sizes[group] for group in found) for class_, found in members.items()}
    left = Counter({class_: len(found) for class_, found in members.items()})  # groups on the other side
    given: Counter[int] = Counter()  # sampled images
    sampled: set[int] = set()
    room = count

    def take(wanted: int, candidates: list[int], last: bool = False) -> None:
        nonlocal room
        for group in candidates:
            if wanted <= 0 or not room:
                return
            spared = last or all(left[class_] > 1 for class_ in shown[group])
            if group not in sampled and sizes[group] <= room and spared:
                sampled.add(group)
                left.subtract(shown[group])
                given.update(dict.fromkeys(shown[group], sizes[group]))
                wanted, room = wanted - sizes[group], room - sizes[group]

    for class_ in sorted(total, key=lambda class_: (total[class_], class_)):
        share = max(1, round(count * total[class_] / images))
        take(share - given[class_], members[class_])
    take(count, order)
    take(count, order, last=True)
    return sampled or {min(order, key=lambda group: sizes[group])}
