"""Detection in large images tile by tile: objects that several tiles see are joined."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

from mrcnn_jax.detections import Detections
from mrcnn_jax.errors import InputError
from mrcnn_jax.inference.image_inputs import to_rgb
from mrcnn_jax.inference.mask_tiles import Runs, clip_runs, encode_runs, run_iou, runs_in_image, unite_runs
from mrcnn_jax.inference.stream import Pipeline, StreamResult, stream_results
from mrcnn_jax.typing import Float, Int

Tile = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels of the image."""


def tile_image(height: int, width: int, side: int, overlap: float = 0.25) -> list[Tile]:
    """Divides an image into overlapping tiles of at most side x side pixels, evenly spread.

    Args:
        height, width: of the image.
        side: of the tiles, in pixels.
        overlap: share of its side that a tile has in common with the next, at least.

    Raises:
        InputError: the side is below 1, or the overlap is not between 0 and 0.9.
    """
    require_tiles(side, overlap)

    def starts(length: int) -> list[int]:
        count = 1 + max(0, -(-(length - side) // max(1, int(side * (1 - overlap)))))
        return np.linspace(0, max(0, length - side), count).round().astype(int).tolist()

    return [
        (x, y, min(x + side, width), min(y + side, height)) for y in starts(height) for x in starts(width)
    ]


def require_tiles(side: Any, overlap: Any) -> None:
    """Raises InputError unless the side is a positive whole number and the overlap from 0 to 0.9."""
    if not isinstance(side, Integral) or isinstance(side, bool) or side < 1:
        raise InputError(f"the side of tiles must be a whole number of at least 1 pixel, not {side!r:.50}")
    if not isinstance(overlap, Real) or not 0 <= overlap <= 0.9:
        given = f"{overlap!r:.50}"
        raise InputError(f"the overlap of tiles must be between 0 and 0.9 of their side, not {given}")


def join_tiles(
    found: Sequence[Detections], tiles: Sequence[Tile], height: int, width: int, iou: float = 0.5
) -> Detections:
    """Joins the detections of an image's tiles.

    Two detections of a class from different tiles are one object if they agree inside the region that both
    tiles see: there the IoU of their masks (without masks: of their boxes) is at least ``iou``. Its box
    encloses all of its parts, its mask is their union; score and keypoints are those of its best part.
    Detections of one tile are never joined with each other, so that one tile gives its own detections.

    Args:
        found: detections of each tile, in its pixels; masks are run-length codes.
        tiles: places of the tiles.
        height, width: of the image.
        iou: minimum IoU in the common region.

    Returns:
        Detections in the image, best first.
    """
    parts = _place(found, tiles, height)
    groups = _group(parts, np.array(tiles, np.float32), height, iou)
    best = np.array([members[0] for members in groups], int)
    boxes = np.zeros((len(groups), 4), np.float32)
    for box, members in zip(boxes, groups, strict=True):
        box[:2], box[2:] = parts.boxes[members, :2].min(axis=0), parts.boxes[members, 2:].max(axis=0)
    keypoints = None if parts.keypoints is None else parts.keypoints[best]
    masks = None
    if parts.runs is not None:
        unions = [unite_runs([parts.runs[one] for one in members]) for members in groups]
        masks = encode_runs(unions, height, width)
    return Detections(boxes, parts.scores[best], parts.classes[best], masks, keypoints, found[0].class_names)


def stream_tiles(
    pipeline: Pipeline, images: Iterable[Any], side: int, overlap: float,
    decode: Callable[[Any], np.ndarray] = to_rgb,
) -> Iterator[StreamResult]:  # fmt: skip
    """Yields the result of each image, seen in tiles of side x side pixels, as ``stream_results``.

    Raises:
        InputError: at once, as ``require_tiles``.
    """
    require_tiles(side, overlap)
    return (_detect_tiles(pipeline, source, side, overlap, decode) for source in images)


def _detect_tiles(
    pipeline: Pipeline, source: Any, side: int, overlap: float, decode: Callable[[Any], np.ndarray]
) -> StreamResult:
    try:
        image = decode(source)
    except InputError as error:
        return StreamResult(source, None, None, error)
    height, width = image.shape[:2]
    tiles = tile_image(height, width, side, overlap)
    results = stream_results(pipeline, (image[y1:y2, x1:x2] for x1, y1, x2, y2 in tiles))
    found = [result.detections for result in results]
    return StreamResult(source, image, join_tiles(found, tiles, height, width), None)


class _Parts(NamedTuple):
    """Detections of all tiles, tile after tile, in pixels of the image."""

    boxes: Float[np.ndarray, "P 4"]
    scores: Float[np.ndarray, "P"]
    classes: Int[np.ndarray, "P"]
    tile: Int[np.ndarray, "P"]
    runs: list[Runs] | None
    keypoints: Float[np.ndarray, "P J 3"] | None


def _place(found: Sequence[Detections], tiles: Sequence[Tile], height: int) -> _Parts:
    tile = np.repeat(np.arange(len(found)), [len(one) for one in found])
    corner = np.array(tiles, np.float32)[tile, :2]
    boxes, scores, classes = (
        np.concatenate([np.asarray(getattr(one, name)) for one in found])
        for name in ("boxes", "scores", "class_ids")
    )
    runs = keypoints = None
    if all(one.masks is not None for one in found):
        placed = zip(found, tiles, strict=True)
        runs = [
            runs_in_image(one.masks, index, at[:2], height)
            for one, at in placed for index in range(len(one))
        ]  # fmt: skip
    if all(one.keypoints is not None for one in found):
        keypoints = np.concatenate([one.keypoints for one in found])
        has_keypoints = keypoints.any(axis=(1, 2), keepdims=True)
        keypoints[..., :2] += np.where(has_keypoints, corner[:, None], 0)
    return _Parts(boxes + np.tile(corner, 2), scores, classes, tile, runs, keypoints)


def _group(parts: _Parts, tiles: Float[np.ndarray, "T 4"], height: int, iou: float) -> list[list[int]]:
    """Returns the parts of each object, best first; objects are in the order of their best parts."""
    groups: list[list[int]] = []
    group_of = np.full(len(parts.scores), -1)
    for part in np.argsort(-parts.scores, kind="stable"):
        other = np.flatnonzero(
            (group_of >= 0) & (parts.classes == parts.classes[part]) & (parts.tile != parts.tile[part])
        )
        common = _intersect(tiles[parts.tile[part]], tiles[parts.tile[other]])
        overlap = _iou(_intersect(parts.boxes[part], common), _intersect(parts.boxes[other], common))
        if parts.runs is not None:
            for at in np.flatnonzero(overlap):
                one, two = (clip_runs(parts.runs[each], common[at], height) for each in (part, other[at]))
                overlap[at] = run_iou(one, two)
        members = [int(part)]  # and those of all groups that it connects, unless they share a tile
        for group in dict.fromkeys(group_of[other[overlap >= iou]].tolist()):
            if not set(parts.tile[groups[group]]) & set(parts.tile[members]):
                members += groups[group]
                groups[group] = []
        group_of[members] = len(groups)
        groups.append(sorted(members, key=lambda one: (-parts.scores[one], one)))
    return sorted(filter(None, groups), key=lambda members: (-parts.scores[members[0]], members[0]))


def _intersect(one: Float[np.ndarray, "*n 4"], other: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    first, last = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    return np.concatenate([first, np.maximum(first, last)], axis=-1)


def _iou(one: Float[np.ndarray, "n 4"], other: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    common, first, second = (
        np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (_intersect(one, other), one, other)
    )
    union = first + second - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
