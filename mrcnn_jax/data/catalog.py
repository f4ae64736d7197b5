"""Where the data set of an experiment is found."""

from pathlib import Path

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import dataset as records
from mrcnn_jax.data import shapes

EMBEDDED = {"shapes": shapes.ShapesConfig(), "puppets": shapes.ShapesConfig(kinds=("puppet",))}
"""What is drawn on first use."""
PLACE = Path("data")
"""Where, below the working directory."""


def open_split(config: DataConfig, split: str) -> records.DatasetSplit:
    """Opens a split of the experiment's data set; draws an embedded set if that is what is asked for and it is not there yet."""
    if config.dataset in EMBEDDED:
        shapes.prepare(PLACE / config.dataset, EMBEDDED[config.dataset], progress=True)
        return records.open_dataset(PLACE / config.dataset, split)
    return records.open_dataset(Path(config.dataset).expanduser(), split)
