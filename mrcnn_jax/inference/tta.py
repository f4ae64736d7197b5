"""Test-time augmentation: an image is seen at several scales and mirrored, and the views are merged.

As in Detectron, boxes of all views are united before non-maximum suppression. Masks and keypoints of the
boxes that are left are then computed in every view and averaged: masks as probabilities, keypoints as logits.
Where masks are voted on, as in FCIS and MNC, the instances of all views vote instead.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mrcnn_jax.config import DataConfig, Experiment
from mrcnn_jax.config.evaluation import MAX_SCALES
from mrcnn_jax.inference.program import compiled
from mrcnn_jax.models.detection import Candidates
from mrcnn_jax.models.mask_rcnn import MaskRCNN
from mrcnn_jax.models.two_stage import Images, Pyramid, TwoStage
from mrcnn_jax.structures import Predictions
from mrcnn_jax.typing import Array, Bool, Float, Int


class ScaledBatch(NamedTuple):
    """The images of a batch at one scale, perhaps with a leading axis of devices."""

    images: Images
    sizes: Int[Array, "B 2"]


def is_augmented(experiment: Experiment) -> bool:
    """Returns whether test-time augmentation is on."""
    config, plain = experiment.evaluation, (experiment.data.short_edge_test,)
    return config.tta_flip or (config.tta_scales or plain) != plain


def scaled_configs(experiment: Experiment) -> tuple[DataConfig, ...]:
    """Returns the configuration of image sizes of each scale."""
    data = experiment.data
    return tuple(at_scale(data, edge) for edge in experiment.evaluation.tta_scales) or (data,)


def at_scale(data: DataConfig, edge: int) -> DataConfig:
    """Returns the configuration with another shorter edge at inference; the longer one changes likewise."""
    if edge == data.short_edge_test:
        return data
    longest = max(edge, round(data.long_edge * edge / data.short_edge_test))
    return replace(data, short_edge=(edge,), short_edge_test=edge, long_edge=longest)


class AugmentedModel:
    """The model as a function of images at several scales, which also sees them mirrored.

    Two programs are compiled for each padded size, one for boxes and one for masks and keypoints, and one to
    merge the boxes. The feature maps of all views stay on the device until masks and keypoints are computed.
    With voted masks the program that merges boxes is the last.

    Args:
        experiment: of the detector.
        keypoint_flip: index of each keypoint's counterpart in the mirrored image; empty if there is none.
        all_devices: as for ``compiled``; images and sizes have a leading axis of devices.
        directory: of stored programs, if any.
    """

    def __init__(
        self, experiment: Experiment, keypoint_flip: Sequence[int], all_devices: bool, directory: Any = None
    ):
        model = experiment.model
        self._candidates, self._merge, self._branches = (
            compiled(model, experiment.train.dtype, all_devices, directory, method, 2 * MAX_SCALES)
            for method in (find_candidates, merge_candidates, compute_branches)
        )
        self._mirrors = (False, True) if experiment.evaluation.tta_flip else (False,)
        self._pairs = np.array(keypoint_flip or range(model.keypoint.num_keypoints), np.int32)

    def __call__(
        self, variables: dict[str, Any], frame: Int[Array, "*d B 2"], batches: Sequence[ScaledBatch]
    ) -> Predictions:
        """Detects in the pixels of ``frame``.

        Args:
            variables: of the model.
            frame: height and width of each image to which the predictions refer.
            batches: the same images at each scale.
        """
        lead = frame.shape[:-1]
        pairs = np.broadcast_to(self._pairs, (*lead, len(self._pairs)))
        views, found = [], []
        for images, sizes in batches:
            for mirror in self._mirrors:
                view = sizes, frame, np.full(lead, mirror)
                candidates, pyramid = self._candidates(variables, images, *view)
                views.append((pyramid, view))
                found.append(candidates)
        merged, total = self._merge({}, found), None
        if merged.masks is not None:  # voted on
            return merged
        for number in range(len(views)):
            (pyramid, view), views[number] = views[number], None  # frees the feature maps
            maps = self._branches(variables, pyramid, merged.boxes, merged.classes, *view, pairs)
            total = maps if total is None else jax.tree.map(jnp.add, total, maps)
        masks, keypoints = jax.tree.map(lambda leaf: leaf / len(views), total)
        return replace(merged, masks=masks, keypoints=keypoints)


def find_candidates(
    model: TwoStage, images: Images, sizes: Int[Array, "B 2"], frame: Int[Array, "B 2"],
    mirror: Bool[Array, "B"],
) -> tuple[Candidates, Pyramid | None]:  # fmt: skip
    """Computes the candidates of a view, in pixels of ``frame``, and the feature maps that branches read.

    Args:
        model: bound to its variables.
        images: resized and padded.
        sizes: height and width before padding.
        frame: height and width of the images to which boxes refer.
        mirror: images to be seen mirrored.
    """
    images = jax.vmap(_mirror_columns)(images, sizes, mirror)
    pyramid = model.pyramid(images, sizes)
    found, voters = model.candidates(pyramid, model.find_proposals(pyramid, images, sizes), sizes)

    def to_frame(boxes, size, target, mirrored):
        boxes = _rescale(_mirror_boxes(boxes, size, mirrored), size, target)
        return jnp.clip(boxes, 0, _sides(target))

    found = replace(found, boxes=jax.vmap(to_frame)(found.boxes, sizes, frame, mirror))
    if voters is None:
        return Candidates(found), pyramid
    boxes = jax.vmap(to_frame)(voters.boxes, sizes, frame, mirror)
    masks = jax.vmap(_mirror_maps)(voters.masks, mirror)
    return Candidates(found, voters._replace(boxes=boxes, masks=masks)), None


def merge_candidates(model: TwoStage, found: Sequence[Candidates]) -> Predictions:
    """Selects the detections among the candidates of all views."""
    return model.select(jax.tree.map(lambda *fields: jnp.concatenate(fields, axis=1), *found))


def compute_branches(
    model: MaskRCNN, pyramid: Pyramid, boxes: Float[Array, "B D 4"], classes: Int[Array, "B D"],
    sizes: Int[Array, "B 2"], frame: Int[Array, "B 2"], mirror: Bool[Array, "B"], pairs: Int[Array, "B J"],
) -> tuple[Float[Array, "B D M M"] | None, Float[Array, "B D J m m"] | None]:  # fmt: skip
    """Computes masks and keypoints of given boxes in a view, and mirrors them back.

    Args:
        model: bound to its variables.
        pyramid: of the view.
        boxes: in pixels of ``frame``.
        classes: of the boxes.
        sizes, frame, mirror: as for ``find_candidates``.
        pairs: index of each keypoint's counterpart in a mirrored image.
    """

    def to_view(boxes, size, target, mirrored):
        return _mirror_boxes(_rescale(boxes, target, size), size, mirrored)

    masks, keypoints = model.branches(pyramid, jax.vmap(to_view)(boxes, sizes, frame, mirror), classes)
    if masks is not None:
        masks = jax.vmap(_mirror_maps)(masks, mirror)
    if keypoints is not None:
        swapped = jax.vmap(lambda maps, order: maps[:, order])(keypoints, pairs)
        keypoints = jax.vmap(lambda mirrored, own, other: jnp.where(mirrored, other[..., ::-1], own))(
            mirror, keypoints, swapped
        )
    return masks, keypoints


def _mirror_columns(image, size, mirror):
    """Mirrors an image without its padding."""
    column = jnp.arange(image.shape[1])
    return image[:, jnp.where(mirror & (column < size[1]), size[1] - 1 - column, column)]


def _mirror_boxes(boxes, size, mirror):
    left, top, right, bottom = boxes.T
    width = size[1].astype(boxes.dtype)
    return jnp.where(mirror, jnp.stack([width - right, top, width - left, bottom], axis=1), boxes)


def _mirror_maps(maps, mirror):
    return jnp.where(mirror, maps[..., ::-1], maps)


def _rescale(boxes, size, target):
    """Scales boxes in an image of one size to another; not at all if they are equal."""
    return boxes * (_sides(target) / _sides(size))


def _sides(size):
    """Returns width, height, width, height as a row."""
    return jnp.tile(size[::-1].astype(jnp.float32), 2)[None]
