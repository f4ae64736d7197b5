"""Frequencies at which training images are sampled: rare classes, mixtures, images without objects.

References:
    Gupta, Dollar, Girshick: LVIS: A Dataset for Large Vocabulary Instance Segmentation, 2019 (repeat factors,
    section "Class imbalance").
"""

import numpy as np
from jaxtyping import Float, Int

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.dataset import DatasetSplit
from mrcnn_jax.data.mixture import Mixture, merge_infos
from mrcnn_jax.data.object_table import read_table
from mrcnn_jax.errors import InputError


def epoch_images(source: DatasetSplit | Mixture, config: DataConfig) -> int:
    """Returns the number of images that are sampled in an epoch, repetitions included."""
    weights = sampling_weights(source, config)
    return len(source) if weights is None else max(1, round(float(weights.sum())))


def sampling_weights(source: DatasetSplit | Mixture, config: DataConfig) -> Float[np.ndarray, "N"] | None:
    """Computes how often each image is sampled in an epoch, on average; None for every image once.

    Repeat factors come first, then ``weights`` of the data sets, which keep the number of images, then
    ``empty_share``.

    Raises:
        InputError: a data set has no table of objects, or no image is left, or none is without objects.
    """
    by_object = config.repeat_threshold or config.empty_share is not None
    if not by_object and not config.weights:
        return None
    weights = np.ones(len(source))
    images, classes = merged_objects(source) if by_object else (np.zeros(0, int),) * 2
    if config.repeat_threshold:
        weights = repeat_factors(images, classes, len(source), config.repeat_threshold)
    if config.weights:
        parts = np.split(weights, np.cumsum([len(part) for part in source.parts])[:-1])
        shares = np.array(config.weights) / sum(config.weights)
        scaled = [part / part.sum() * share for part, share in zip(parts, shares, strict=True)]
        weights = np.concatenate(scaled) * weights.sum()
    if config.empty_share is not None:
        weights = _with_empty_share(weights, images, config.empty_share, source)
    return weights


def repeat_factors(
    images: Int[np.ndarray, "M"], classes: Int[np.ndarray, "M"], number: int, threshold: float
) -> Float[np.ndarray, "N"]:
    """Computes the repeat factor of each image, the greatest of its classes: max(1, sqrt(t / f)).

    Args:
        images: index of each object's image.
        classes: of each object.
        number: of images.
        threshold: t, the share f of images with a class below which it counts as rare.
    """
    pairs = np.unique(np.stack([classes, images]), axis=1)
    frequency = np.bincount(pairs[0]) / number
    factors = np.ones(number)
    np.maximum.at(factors, pairs[1], np.sqrt(threshold / frequency[pairs[0]]))
    return factors


def sample_counts(
    weights: Float[np.ndarray, "n"], total: int, random: np.random.Generator
) -> Int[np.ndarray, "n"]:
    """Samples how often each image comes in an epoch: its expectation rounded up or down, ``total`` together.

    Systematic sampling in a random order.
    """
    order = random.permutation(len(weights))
    ends = np.cumsum(weights[order])
    ends = ends / ends[-1] * total
    ends[-1] = total
    counts = np.empty(len(weights), int)
    counts[order] = np.diff(np.floor(ends + random.random()), prepend=0)
    return counts


def _with_empty_share(
    weights: Float[np.ndarray, "N"], images: Int[np.ndarray, "M"], share: float,
    source: DatasetSplit | Mixture,
) -> Float[np.ndarray, "N"]:  # fmt: skip
    """Scales the weights of images without objects so that they are a share of the sample."""
    empty = np.bincount(images, minlength=len(weights)) == 0
    if empty.all():
        raise InputError(f"data.empty_share needs objects, but no image of {source.directory} has any")
    if share and not empty.any():
        raise InputError(
            f"data.empty_share is {share:g}, but every training image of {source.directory} has objects: "
            "leave it out"
        )
    wanted = share / (1 - share) * weights[~empty].sum()
    return np.where(empty, weights * wanted / max(weights[empty].sum(), 1e-12), weights)


def merged_objects(source: DatasetSplit | Mixture) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """Returns index of the image and merged class of all objects that are no crowds."""
    images, classes, first = [], [], 0
    maps = merge_infos([part.info for part in source.parts])[1]
    for part, merged in zip(source.parts, maps, strict=True):
        table = read_table(part.directory, part.split, len(part))
        if table is None:
            raise InputError(
                f"data.repeat_threshold and data.empty_share need the table of objects that {part.directory} "
                "lacks, as it was prepared by an older version: prepare it again"
            )
        images.append(first + table.images[~table.crowd])
        classes.append(merged[table.classes[~table.crowd]])
        first += len(part)
    return np.concatenate(images), np.concatenate(classes)
