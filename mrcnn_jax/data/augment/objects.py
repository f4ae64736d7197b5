"""Transformation of objects into a view: boxes, masks and keypoints.

Masks stay run-length codes until their crops are sampled, so that no full-size mask is made.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from mrcnn_jax.data.augment.mask_runs import MaskRuns, Window, cell_centres
from mrcnn_jax.data.augment.view import View, transform_points
from mrcnn_jax.data.dataset import Objects


class ViewObjects(NamedTuple):
    """The n objects that a view shows, in pixels of the view."""

    boxes: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]
    has_mask: Bool[np.ndarray, "n"]
    masks: UInt8[np.ndarray, "n M M"]  # each cropped to its box
    keypoints: Float[np.ndarray, "n J 3"]
    runs: np.ndarray  # MaskRuns of the image as stored; None for a crowd, or without a mask

    @property
    def has_mask_target(self) -> Bool[np.ndarray, "n"]:
        """Returns the objects that have a mask and are not a crowd."""
        return self.has_mask & ~self.crowd

    def take(self, chosen: Int[np.ndarray, "m"]) -> "ViewObjects":
        """Returns some of the objects, as copies."""
        return ViewObjects(*(field[chosen] for field in self))

    def join(self, others: "ViewObjects") -> "ViewObjects":
        """Returns the objects of both."""
        return ViewObjects(*map(np.concatenate, zip(self, others, strict=True)))

    def largest(self, count: int) -> "ViewObjects":
        """Returns the largest in their order: small ones are the hardest to tell from background."""
        return self.take(np.sort(np.argsort(-self.areas, kind="stable")[:count]))


def clip_far_boxes(boxes: Float[np.ndarray, "n 4"], height: int, width: int) -> Float[np.ndarray, "n 4"]:
    """Clips boxes that extend more than a pixel beyond an image of this size; others stay as annotated."""
    clipped = boxes.clip(0, [width, height, width, height])
    return np.where(np.abs(boxes - clipped).max(axis=1, keepdims=True, initial=0) > 1, clipped, boxes)


def transform_objects(
    objects: Objects, height: int, width: int, view: View, *, slots: int, mask_size: int,
    min_visible: float = 0.0, keypoint_flip: tuple[int, ...] = (), masks: bool = True,
) -> ViewObjects:  # fmt: skip
    """Transforms the objects of an image into a view.

    The box of an object that is cut or rotated is that of what is left of its mask; without a mask, that of
    its annotated box.

    Args:
        objects: of an image of ``height`` x ``width`` pixels.
        height, width: of the image as stored.
        view: what is shown.
        slots: largest number of objects; of more, the largest are kept.
        mask_size: side of the cropped masks.
        min_visible: smallest fraction of an object that must be left of it.
        keypoint_flip: index of each keypoint's counterpart in a mirrored image.
        masks: False leaves all masks zero.
    """
    has_mask = np.array(objects.rles, object) != ""
    runs = np.array([MaskRuns(rle, height, width, view.window) if rle and not crowd else None
                     for rle, crowd in zip(objects.rles, objects.crowd, strict=True)], object)  # fmt: skip
    seen = ViewObjects(
        clip_far_boxes(objects.boxes, height, width), objects.classes, np.asarray(objects.areas),
        objects.crowd, has_mask, np.zeros((len(runs), 0, 0), np.uint8), objects.keypoints.copy(), runs,
    )  # fmt: skip
    whole = not view.angle and view.window == (0, 0, height, width)
    if not whole:
        drop_outside(seen.keypoints, view.window)
        boxes, visible = (_outline_rotated if view.angle else _outline_upright)(seen, view)
        enough = (visible > 0) & (visible >= min_visible)
        seen = seen._replace(boxes=boxes).take(np.flatnonzero(enough))
    seen = seen.largest(slots)
    crops = np.zeros((len(seen.boxes), mask_size, mask_size), np.uint8)
    transform = _transform_rotated if view.angle else _transform_upright
    seen = transform(seen._replace(masks=crops), view, keypoint_flip, masks)
    if not whole:
        drop_outside(seen.keypoints, (0, 0, *view.size))
    return seen


def drop_outside(keypoints: Float[np.ndarray, "n J 3"], window: Window) -> None:
    """Makes keypoints outside a part of an image unlabelled."""
    top, left, bottom, right = window
    x, y, _ = np.moveaxis(keypoints, -1, 0)
    keypoints[(x < left) | (y < top) | (x >= right) | (y >= bottom)] = 0


def _outline_upright(
    seen: ViewObjects, view: View
) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n"]]:
    """Returns the boxes of what the window shows, in pixels of the image, and the fraction that it shows."""
    top, left, bottom, right = view.window
    boxes = seen.boxes.clip([left, top] * 2, [right, bottom] * 2)
    visible = _areas(boxes) / np.maximum(_areas(seen.boxes), 1e-9)
    for index in np.flatnonzero((boxes != seen.boxes).any(axis=1) & seen.has_mask_target):
        segments, visible[index] = seen.runs[index].segments()
        if len(segments):
            column, first, end = segments.T
            boxes[index] = column.min(), first.min(), column.max() + 1, end.max()
    return boxes, visible


def _outline_rotated(
    seen: ViewObjects, view: View
) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, "n"]]:
    """Returns the boxes of what the view shows, in its pixels, and the fraction that it shows."""
    matrix, limits = view.matrix[:2], np.array(view.size[::-1], float)
    cut, visible = _outline_upright(seen, view)
    corners = transform_points(matrix, cut[:, [0, 2, 2, 0]], cut[:, [1, 1, 3, 3]])
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    boxes = whole.clip(0, np.tile(limits, 2))
    visible *= _areas(boxes) / np.maximum(_areas(whole), 1e-9)
    for index in np.flatnonzero(seen.has_mask_target):
        segments, share = seen.runs[index].segments()
        column, first, end = segments.T
        starts, ends = (transform_points(matrix, column + 0.5, row) for row in (first, end))
        enter, leave = _clip_segments(starts, ends - starts, limits)
        kept = enter < leave
        left = ((end - first) * (leave - enter))[kept].sum()
        visible[index] = share * left / max(1, (end - first).sum())
        if kept.any():
            places = np.stack([enter, leave])[:, kept, None]
            points = (starts[kept] + places * (ends - starts)[kept]).reshape(-1, 2)
            half = np.abs(matrix[:, 0]) / 2  # of a column's width
            outline = np.concatenate([points.min(axis=0) - half, points.max(axis=0) + half])
            boxes[index] = outline.clip(0, np.tile(limits, 2))
    return boxes, visible


def _clip_segments(
    starts: Float[np.ndarray, "R 2"], vectors: Float[np.ndarray, "R 2"], limits: Float[np.ndarray, "2"]
) -> tuple[Float[np.ndarray, "R"], Float[np.ndarray, "R"]]:
    """Returns where segments enter and leave a rectangle from the origin, as fractions of their length.

    Those that miss it leave before they enter.

    References:
        Liang and Barsky, A New Concept and Method for Line Clipping, 1984.
    """
    inside, still = (starts >= 0) & (starts <= limits), vectors == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = np.stack([-starts / vectors, (limits - starts) / vectors])
    enter = np.where(still, np.where(inside, 0.0, 1.0), bounds.min(axis=0)).max(axis=1)
    leave = np.where(still, np.where(inside, 1.0, 0.0), bounds.max(axis=0)).min(axis=1)
    return np.maximum(0, enter), np.minimum(1, leave)


def _transform_upright(
    seen: ViewObjects, view: View, keypoint_flip: tuple[int, ...], masks: bool
) -> ViewObjects:
    """Moves objects, whose boxes are in pixels of the image, to a view that is not rotated."""
    top, left, _, _ = view.window
    height, width = view.resized
    crops, visibility = seen.masks, seen.keypoints[..., 2:]
    for index in np.flatnonzero(seen.has_mask_target) if masks else ():
        crops[index] = seen.runs[index].crop(seen.boxes[index], crops.shape[1])
    boxes = ((seen.boxes - [left, top] * 2) * np.tile(view.scale, 2)).astype(np.float32)
    points = ((seen.keypoints[..., :2] - [left, top]) * view.scale).astype(np.float32)
    if view.mirrored:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        points[..., 0] = width - points[..., 0]
        points, visibility = points[:, list(keypoint_flip)], visibility[:, list(keypoint_flip)]
        crops = crops[..., ::-1]
    for _ in range(view.turns % 4):
        x1, y1, x2, y2 = boxes.T
        boxes = np.stack([y1, width - x2, y2, width - x1], axis=1)
        points = np.stack([points[..., 1], width - points[..., 0]], axis=-1)
        crops, height, width = np.rot90(crops, axes=(1, 2)), width, height
    return seen._replace(boxes=boxes, masks=crops, keypoints=_with_visibility(points, visibility))


def _transform_rotated(
    seen: ViewObjects, view: View, keypoint_flip: tuple[int, ...], masks: bool
) -> ViewObjects:
    """Moves objects, whose boxes are in pixels of the view, to a view that is rotated."""
    back = np.linalg.inv(view.matrix)[:2]
    for index in np.flatnonzero(seen.has_mask_target) if masks else ():
        points = transform_points(back, *cell_centres(seen.boxes[index], seen.masks.shape[1]))
        seen.masks[index] = seen.runs[index].sample(points[..., 0], points[..., 1])
    points = transform_points(view.matrix[:2], seen.keypoints[..., 0], seen.keypoints[..., 1])
    visibility = seen.keypoints[..., 2:]
    if view.mirrored:
        points, visibility = points[:, list(keypoint_flip)], visibility[:, list(keypoint_flip)]
    return seen._replace(boxes=seen.boxes.astype(np.float32), keypoints=_with_visibility(points, visibility))


def _with_visibility(
    points: Float[np.ndarray, "n J 2"], visibility: Float[np.ndarray, "n J 1"]
) -> Float[np.ndarray, "n J 3"]:
    """Returns keypoints; unlabelled ones are zeros."""
    keypoints = np.concatenate([points, visibility], axis=-1).astype(np.float32)
    return np.where(visibility > 0, keypoints, np.float32(0))


def _areas(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    return np.prod((boxes[:, 2:] - boxes[:, :2]).clip(0), axis=1)
