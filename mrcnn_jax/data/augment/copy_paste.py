"""Copy-paste: objects of one image are pasted onto another, whose objects they cover.

References:
    Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, 2021.
"""

from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float

from mrcnn_jax.data.augment.mask_runs import cell_centres
from mrcnn_jax.data.augment.objects import ViewObjects, drop_outside
from mrcnn_jax.data.augment.pixels import Pixels
from mrcnn_jax.data.augment.view import View, opencv_matrix
from mrcnn_jax.run_length_masks import Window


class Scene(NamedTuple):
    """A view of an image, in the upper left corner of a padded one, with its objects."""

    image: Pixels
    view: View
    objects: ViewObjects

    def window(self, index: int) -> Window:
        """Returns the rows and columns of the padded image that hold an object."""
        x1, y1, x2, y2 = self.objects.boxes[index]
        (height, width), (bottom, right) = self.view.size, np.ceil([y2, x2]).astype(int)
        return (slice(max(0, int(y1)), min(height, bottom)), slice(max(0, int(x1)), min(width, right)))

    def mask(self, index: int) -> Bool[np.ndarray, "h w"]:
        """Returns the pixels of an object in its window."""
        rows, columns = self.window(index)
        (top, left), pixels = self.objects.runs[index].decode()
        matrix = self.view.matrix.copy()
        matrix[:2, 2] += matrix[:2, :2] @ [left, top] - [columns.start, rows.start]
        size = columns.stop - columns.start, rows.stop - rows.start
        if not pixels.size or min(size) < 1:
            return np.zeros(size[::-1], bool)
        return cv2.warpAffine(pixels, opencv_matrix(matrix), size, flags=cv2.INTER_NEAREST) > 0


def paste(onto: Scene, source: Scene, random: np.random.Generator, min_visible: float) -> ViewObjects:
    """Pastes a random half of the objects that have masks, at least one, into an image.

    Args:
        onto: its image is changed in place.
        source: of the pasted objects; its padded image has the same size.
        random: source of random numbers.
        min_visible: smallest fraction of an object that must be left of it.

    Returns:
        The objects of the changed image: those still seen, then the pasted ones.
    """
    candidates = np.flatnonzero(source.objects.has_mask_target)
    chosen = candidates[random.random(len(candidates)) < 0.5]
    if len(candidates) and not len(chosen):
        chosen = random.choice(candidates, 1)
    cover, (height, width) = np.zeros(onto.image.shape[:2], bool), onto.view.size
    for index in chosen:
        cover[source.window(index)] |= source.mask(index)
    cover[height:], cover[:, width:] = False, False
    cv2.copyTo(source.image, cover.view(np.uint8), onto.image)
    beneath = _keep_visible(onto, range(len(onto.objects.boxes)), ~cover, min_visible)
    above = _keep_visible(source, chosen, cover, min_visible)
    drop_outside(above.keypoints, (0, 0, *onto.view.size))
    return beneath.join(above)


def _keep_visible(
    scene: Scene, indices: Iterable[int], visible: Bool[np.ndarray, "H W"], min_visible: float
) -> ViewObjects:
    """Returns the objects of which enough is visible, with the masks and boxes of what is visible."""
    objects, kept = scene.objects.take(np.arange(len(scene.objects.boxes))), []  # a copy
    for index in indices:
        window = scene.window(index)
        seen = visible[window]
        if seen.all():
            kept.append(index)
            continue
        if not objects.has_mask_target[index]:  # the box alone is known
            if seen.any() and seen.mean() >= min_visible:
                kept.append(index)
            continue
        mask = scene.mask(index)
        left = mask & seen
        if left.any() and left.sum() >= min_visible * mask.sum():
            objects.boxes[index], objects.masks[index] = _fit(left, window, objects.masks.shape[1])
            kept.append(index)
    _hide_keypoints(objects.keypoints, visible)
    return objects.take(np.array(kept, int))


def _fit(
    mask: Bool[np.ndarray, "h w"], window: Window, size: int
) -> tuple[Float[np.ndarray, "4"], Bool[np.ndarray, "M M"]]:
    """Returns the box of a mask's pixels in a window, and the mask cropped to it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    x, y = cell_centres(box, size)
    return box + np.tile([window[1].start, window[0].start], 2), mask[y.astype(int), x.astype(int)]


def _hide_keypoints(keypoints: Float[np.ndarray, "n J 3"], visible: Bool[np.ndarray, "H W"]) -> None:
    """Marks covered keypoints as hidden."""
    height, width = visible.shape
    x = keypoints[..., 0].astype(int).clip(0, width - 1)
    y = keypoints[..., 1].astype(int).clip(0, height - 1)
    covered = (keypoints[..., 2] > 1) & ~visible[y, x]
    keypoints[covered, 2] = 1
