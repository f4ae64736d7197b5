"""Several splits as one to train on, with the classes of all, merged by name."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mrcnn_jax.data.dataset import DatasetSplit, Record
from mrcnn_jax.structures import DatasetInfo


class Mixture:
    """Random access to the records of several splits, one after the other: ``len(mixture)``, ``mixture[i]``.

    Attributes:
        parts: the splits.
        info: of all classes (``merge_infos``).
        sizes: height and width of every image.
        directory: those of the parts, for messages.
        split: name of the first one.
    """

    def __init__(self, parts: Sequence[DatasetSplit]):
        self.parts, self.split = tuple(parts), parts[0].split
        self.info, self._classes = merge_infos([part.info for part in parts])
        self.sizes: Int[np.ndarray, "N 2"] = np.concatenate([part.sizes for part in parts])
        self.directory = " and ".join(str(part.directory) for part in parts)
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Record:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        record = part[index - int(self._ends[number]) + len(part)]
        objects = record.objects
        classes, joints = self._classes[number][objects.classes], len(self.info.keypoint_names)
        return record._replace(
            objects=objects._replace(classes=classes, keypoints=objects.keypoints[:, :joints])
        )


def merge_infos(infos: Sequence[DatasetInfo]) -> tuple[DatasetInfo, list[Int[np.ndarray, "K"]]]:
    """Merges classes by name: those of the first data set, then what each next one adds, in their orders.

    A class keeps its id unless an earlier one has it. Keypoints are kept if all sets have equal ones. A name
    that a set repeats is merged with its repetition in the others.

    Returns:
        The description of all, and for each data set the merged class of each of its own.
    """
    merged: dict[tuple[str, int], int] = {}  # name and how often it came before -> class
    ids: list[int] = []
    maps = []
    for info in infos:
        seen, classes = Counter[str](), []
        for id_, name in zip(info.category_ids, info.category_names, strict=True):
            key = name, seen[name]
            seen[name] += 1
            if key not in merged:
                merged[key] = len(ids)
                ids.append(max(ids) + 1 if id_ in ids else id_)
            classes.append(merged[key])
        maps.append(np.array(classes, np.int32))
    first, names = infos[0], tuple(name for name, _ in merged)
    whole = DatasetInfo(" + ".join(info.name for info in infos), tuple(ids), names)
    if len({(info.keypoint_names, info.keypoint_flip) for info in infos}) == 1:
        with_keypoints = {int(classes[own]) for info, classes in zip(infos, maps, strict=True)
                          for own in info.keypoint_classes}  # fmt: skip
        whole = first._replace(name=whole.name, category_ids=whole.category_ids, category_names=names,
                               keypoint_classes=tuple(sorted(with_keypoints)))  # fmt: skip
    return whole, maps
