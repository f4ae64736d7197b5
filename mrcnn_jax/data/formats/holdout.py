"""Random choice of images for validation, stratified by class."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np


def hold_out(classes: Mapping[int, Collection[int]], count: int, seed: int = 0) -> set[int]:
    """Draws images for validation so that, as far as possible, every class is on both sides.

    The rarest class goes first: it gives its share of ``count``, rounded, but at least one image if it has
    two, and never its last; then the next rarest, and at last images at random. The result depends on the
    ids, the classes and the seed alone, not on any order.

    Args:
        classes: the classes that each image shows, by image id; an image may show none.
        count: number of images to draw, smaller than the number of images.
        seed: of the random order.

    Returns:
        The ids of the drawn images.
    """
    ids = sorted(classes)
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    shown = {id_: set(classes[id_]) for id_ in ids}
    total = Counter(class_ for found in shown.values() for class_ in found)
    drawn: set[int] = set()
    left = Counter(total)

    def draw(wanted: int, candidates: list[int]) -> None:
        for id_ in candidates:
            if wanted <= 0 or len(drawn) == count:
                return
            if id_ not in drawn and all(left[class_] > 1 for class_ in shown[id_]):
                drawn.add(id_)
                left.subtract(shown[id_])
                wanted -= 1

    members: dict[int, list[int]] = {class_: [] for class_ in total}
    for id_ in order:
        for class_ in shown[id_]:
            members[class_].append(id_)
    for class_ in sorted(total, key=lambda class_: (total[class_], class_)):
        share = max(1, round(count * total[class_] / len(ids)))
        draw(share - (total[class_] - left[class_]), members[class_])
    draw(count, order)
    drawn.update([id_ for id_ in order if id_ not in drawn][: count - len(drawn)])
    return drawn
