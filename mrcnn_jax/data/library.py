"""Where the data set of an experiment is found."""

from pathlib import Path

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data import records, shapes

SHAPES = Path("data/shapes")
"""The embedded set is drawn here, below the working directory, on first use."""


def open_split(config: DataConfig, split: str) -> records.RecordSource:
    """Opens a split of the experiment's data set; draws the embedded set if that is what is asked for and it is not there yet."""
    if config.dataset == "shapes":
        shapes.prepare(SHAPES, shapes.ShapesConfig(), progress=True)
        return records.open_dataset(SHAPES, split)
    return records.open_dataset(Path(config.dataset).expanduser(), split)
