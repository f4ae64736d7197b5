"""Training examples: a record as a random view shows it, in fixed shapes."""

from collections.abc import Callable

import numpy as np

from mrcnn_jax.config import OURS, Conventions, DataConfig
from mrcnn_jax.data.augment.copy_paste import Scene, paste
from mrcnn_jax.data.augment.objects import ViewObjects, transform_objects
from mrcnn_jax.data.augment.pixels import change_pixels
from mrcnn_jax.data.augment.view import render_view, sample_view
from mrcnn_jax.data.dataset import Record
from mrcnn_jax.data.transforms import decode_record, padded_size
from mrcnn_jax.structures import DatasetInfo, Example

Render = Callable[[Record], Scene]
SampleOther = Callable[[np.random.Generator, Render], Scene | None]


def training_example(
    record: Record,
    info: DatasetInfo,
    config: DataConfig,
    random: np.random.Generator,
    masks: bool = True,
    conventions: Conventions = OURS,
    sample_other: SampleOther | None = None,
) -> Example:
    """Makes an augmented training example of a record.

    Args:
        record: image and objects.
        info: names and mirror partners of the keypoints.
        config: sizes, object slots and augmentation.
        random: source of random numbers.
        masks: False leaves all masks zero, for a model without a mask branch.
        conventions: how the image is resized.
        sample_other: samples another record, whose objects are pasted, and returns it rendered; None if it
            cannot be read. Without this function nothing is pasted.

    Raises:
        InputError: the image cannot be decoded.
    """
    padded = padded_size(config, record.height > record.width)

    def render(record: Record) -> Scene:
        return _sample_scene(record, info, config, random, padded, masks, conventions)

    scene, share = render(record), config.augment.copy_paste
    if share and sample_other and random.random() < share and (source := sample_other(random, render)):
        scene = scene._replace(objects=paste(scene, source, random, config.augment.min_visible))
    height, width = scene.view.size
    change_pixels(scene.image[:height, :width], random, config.augment)
    slots = _fill_slots(scene.objects.largest(config.max_objects), config.max_objects)
    return Example(scene.image, np.array(scene.view.size, np.int32), **slots)


def _sample_scene(
    record: Record, info: DatasetInfo, config: DataConfig, random: np.random.Generator,
    padded: tuple[int, int], masks: bool, conventions: Conventions,
) -> Scene:  # fmt: skip
    """Samples a view of a record that fits the padded size."""
    image = decode_record(record)
    height, width = image.shape[:2]
    view = sample_view(random, height, width, record.objects.boxes, padded, config, conventions)
    objects = transform_objects(
        record.objects, height, width, view, slots=config.max_objects, mask_size=config.mask_size,
        min_visible=config.augment.min_visible, keypoint_flip=info.keypoint_flip, masks=masks,
    )  # fmt: skip
    return Scene(render_view(image, view, padded, conventions), view, objects)


def _fill_slots(objects: ViewObjects, slots: int) -> dict[str, np.ndarray]:
    """Returns the fields of an example's objects in fixed shapes."""
    types = {"boxes": np.float32, "classes": np.int32, "crowd": bool, "masks": np.uint8, "has_mask": bool,
             "keypoints": np.float32}  # fmt: skip
    arrays = {"valid": np.arange(slots) < len(objects.boxes)}
    for name, dtype in types.items():
        values = getattr(objects, name)
        arrays[name] = np.zeros((slots, *values.shape[1:]), dtype)
        arrays[name][: len(values)] = values
    return arrays
