"""Lookup of an experiment's data set: an embedded one by name, or a prepared directory."""

from dataclasses import replace
from pathlib import Path

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset import DatasetSplit, open_dataset
from mrcnn_jax.data.mixture import Mixture
from mrcnn_jax.paths import require_local

EMBEDDED = {"shapes": shapes.ShapesConfig(), "puppets": shapes.ShapesConfig(kinds=("puppet",))}
"""Data sets that are drawn on first use."""
DATA_FOLDER = Path("data")
"""Folder of prepared sets, below the working directory."""


def open_split(config: DataConfig, split: str) -> DatasetSplit:
    """Opens a split of the experiment's data set, drawing an embedded set that does not exist yet.

    Raises:
        InputError: the directory is no prepared data set, or has no such split.
    """
    if config.dataset not in EMBEDDED:
        require_local(config.dataset, "the data set")
        return open_dataset(Path(config.dataset).expanduser(), split)
    directory = DATA_FOLDER / config.dataset
    shapes.prepare(directory, EMBEDDED[config.dataset], progress=True)
    return open_dataset(directory, split)


def open_training(config: DataConfig) -> DatasetSplit | Mixture:
    """Opens the split to train on, or those of several data sets as one.

    Raises:
        InputError: as for ``open_split``.
    """
    datasets = (config.dataset, *config.extra_datasets)
    parts = [open_split(replace(config, dataset=one), config.train_split) for one in datasets]
    return Mixture(parts) if len(parts) > 1 else parts[0]
