"""Slow float64 NumPy references, written to be read: one box, one pixel, one sample at a time."""

import math
from fractions import Fraction

import numpy as np


def area(box):
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def intersection(a, b):
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou(a, b):
    overlap = intersection(a, b)
    return overlap / (area(a) + area(b) - overlap) if overlap > 0 else 0.0


def giou(a, b):
    enclosing = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - intersection(a, b)
    return iou(a, b) - (1 - union / enclosing if enclosing > 0 else 0.0)


def pairwise(measure, first, second):
    """measure(a, b) for all pairs of boxes: [len(first), len(second)]."""
    return np.array([[measure(a, b) for b in np.float64(second)] for a in np.float64(first)]).reshape(
        len(first), len(second)
    )


def greedy_nms(boxes, scores, threshold, valid=None, groups=None):
    """Indices of kept boxes, best first: takes the best, drops those of its group that overlap it."""
    valid = np.ones(len(boxes), bool) if valid is None else valid
    groups = np.zeros(len(boxes), int) if groups is None else groups
    left = [i for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)) if valid[i]]
    overlaps = pairwise(iou, boxes, boxes)
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if groups[i] != groups[best] or overlaps[best, i] <= threshold]
    return kept


def match(overlaps, valid, high, low, low_quality):
    """Index of the best object and label (1, 0, -1) of each candidate; overlaps are [objects, candidates]."""
    objects = [g for g in range(len(overlaps)) if valid[g]]
    indices, labels = [], []
    for n in range(overlaps.shape[1]):
        best = max(objects, key=lambda g: (overlaps[g, n], -g), default=None)
        overlap = 0.0 if best is None else overlaps[best, n]
        label = 1 if best is not None and overlap >= high else 0 if best is None or overlap < low else -1
        if low_quality and any(overlaps[g, n] > 0 and overlaps[g, n] == overlaps[g].max() for g in objects):
            label = 1
        indices.append(0 if best is None else best)
        labels.append(label)
    return np.array(indices), np.array(labels)


def bilinear(image, y, x):
    """The [H, W, C] image at (y, x), cell i's value at i: 0 more than a cell outside, else the border."""
    height, width, channels = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(channels)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = (1 - across) * image[top, left] + across * image[top, right]
    lower = (1 - across) * image[bottom, left] + across * image[bottom, right]
    return (1 - down) * upper + down * lower


def roi_align(image, boxes, output_size, scale=1.0, samples=2, half_pixel=True, reduce=np.mean):
    """[N, PH, PW, C]: the mean of bilinear samples of every bin; with samples 0, ceil(RoI size / bins)."""
    image = np.asarray(image, np.float64)
    rows, columns = output_size
    pooled = np.zeros((len(boxes), rows, columns, image.shape[2]))
    for n, box in enumerate(np.asarray(boxes, np.float64)):
        x1, y1, x2, y2 = box * scale - (0.5 if half_pixel else 0.0)
        height, width = (y2 - y1, x2 - x1) if half_pixel else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        adaptive = max(math.ceil(height / rows), 1), max(math.ceil(width / columns), 1)
        down, across = (samples, samples) if samples else adaptive
        for i in range(rows):
            for j in range(columns):
                ys = [y1 + (i + (u + 0.5) / down) * height / rows for u in range(down)]
                xs = [x1 + (j + (v + 0.5) / across) * width / columns for v in range(across)]
                pooled[n, i, j] = reduce([bilinear(image, y, x) for y in ys for x in xs], axis=0)
    return pooled


def round_half_away(value):
    return math.copysign(math.floor(abs(value) + 0.5), value)


def roi_warp(image, boxes, output_size, scale=1.0, samples=2, reduce=np.mean):
    """RoIAlign without half a pixel of boxes whose corners are rounded to whole cells."""
    rounded = [[round_half_away(corner) for corner in np.float64(box) * scale] for box in boxes]
    return roi_align(image, rounded, output_size, 1.0, samples, False, reduce)


def touched(start, size, index, bins):
    """Cells that the bin of a length touches, in exact arithmetic."""
    begin, end = (Fraction(start) + Fraction(i, bins) * Fraction(size) for i in (index, index + 1))
    return range(math.floor(begin), math.ceil(end))


def ps_roi_pool(maps, boxes, output_size, scale=1.0, rounding="pixels"):
    """[N, PH, PW, c] from maps [H, W, k, k, c]: the mean of the cells that a bin of a rounded box touches."""
    maps = np.asarray(maps, np.float64)
    height, width, groups, _, channels = maps.shape
    rows, columns = output_size
    pooled = np.zeros((len(boxes), rows, columns, channels))
    for n, box in enumerate(np.float64(boxes)):
        if rounding == "pixels":
            corners = [(round_half_away(corner) + (axis > 1)) * scale for axis, corner in enumerate(box)]
            last, shortest = 0, 0.1
        else:
            corners = [round_half_away(corner * scale) for corner in box]
            last, shortest = 1, 1.0
        (x1, y1), (x2, y2) = corners[:2], corners[2:]
        axes = (y1, max(y2 - y1, shortest), height - last), (x1, max(x2 - x1, shortest), width - last)
        for p in range(rows):
            for q in range(columns):
                ys, xs = (
                    [cell for cell in touched(start, size, index, bins) if 0 <= cell < limit]
                    for (start, size, limit), index, bins in zip(axes, (p, q), output_size, strict=True)
                )
                own = maps[:, :, p * groups // rows, q * groups // columns]
                pooled[n, p, q] = own[np.ix_(ys, xs)].mean(axis=(0, 1)) if ys and xs else 0
    return pooled


def bin_cells(start, count, index, bins):
    return range(start + math.floor(index * count / bins), start + math.ceil((index + 1) * count / bins))


def roi_pool(image, boxes, output_size, scale=1.0):
    """[N, PH, PW, C]: the largest cell of every bin; both end cells of a rounded box belong to it."""
    height, width, channels = image.shape
    pooled = np.zeros((len(boxes), *output_size, channels))
    for n, box in enumerate(boxes):
        x1, y1, x2, y2 = (int(round_half_away(corner)) for corner in np.float64(box) * scale)
        tall, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i, j in np.ndindex(*output_size):
            rows = [y for y in bin_cells(y1, tall, i, output_size[0]) if 0 <= y < height]
            columns = [x for x in bin_cells(x1, wide, j, output_size[1]) if 0 <= x < width]
            if rows and columns:
                pooled[n, i, j] = image[np.ix_(rows, columns)].max(axis=(0, 1))
    return pooled
