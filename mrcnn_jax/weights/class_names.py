"""Names of the classes and keypoints of imported weights."""

from collections.abc import Sequence

from mrcnn_jax.config import ModelConfig
from mrcnn_jax.data import coco_classes
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo


def dataset_info(model: ModelConfig, names: Sequence[str], known: DatasetInfo | None = None) -> DatasetInfo:
    """Returns the given names of the classes, or those that are known, or COCO's if there are as many.

    Args:
        model: whose classes and keypoints are named.
        names: of the classes in the order of the weights; nothing if they are not given.
        known: what the file specifies.

    Raises:
        InputError: there are more or fewer names than classes, or they are no sequence of texts.
    """
    count, num_keypoints = model.num_classes, model.keypoint.num_keypoints
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"the names of the classes must be a sequence of texts, not {names!r:.80}")
    if names and len(names) != count:
        raise InputError(f"{len(names)} names of classes are given, but the model has {count} classes")
    if known:
        return known._replace(category_names=tuple(names)) if names else known
    info = {80: coco_classes.COCO, 90: coco_classes.COCO_WITH_GAPS}.get(count, coco_classes.unknown(count))
    if "keypoints" in model.tasks:
        if count == 1 and num_keypoints == len(coco_classes.COCO_PERSON.keypoint_names):
            info = coco_classes.COCO_PERSON
        else:
            info = info._replace(
                keypoint_names=tuple(f"keypoint {index}" for index in range(1, num_keypoints + 1)),
                keypoint_flip=tuple(range(num_keypoints)),
                keypoint_classes=model.keypoint.classes,
            )
    return info._replace(category_names=tuple(names)) if names else info
