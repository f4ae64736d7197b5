"""A tiny detector with random weights, which nothing had to train, and a data set for it."""

from dataclasses import replace

import pytest
import tiny

from mrcnn_jax.config import Experiment
from mrcnn_jax.data import shapes
from mrcnn_jax.data.dataset import DatasetSplit, open_dataset
from mrcnn_jax.inference.detector import Detector


@pytest.fixture(scope="session")
def validation(tmp_path_factory) -> DatasetSplit:
    directory = tmp_path_factory.mktemp("sets") / "few-shapes"
    sizes = {"image_sizes": ((64, 64), (64, 96)), "min_size": 16, "max_size": 64}
    shapes.prepare(directory, shapes.ShapesConfig(train_images=12, validation_images=10, **sizes))
    return open_dataset(directory, "validation")


@pytest.fixture(scope="session")
def experiment(validation) -> Experiment:
    model = tiny.model_config(num_classes=len(shapes.KINDS))
    model = replace(model, box=replace(model.box, score_threshold=0.0))
    return tiny.experiment(model, {"dataset": str(validation.directory)})


@pytest.fixture(scope="session")
def detector(experiment) -> Detector:
    return Detector(experiment, shapes.INFO, tiny.variables(experiment.model))
