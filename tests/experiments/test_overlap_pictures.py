"""Pictures of overlapping objects: which images are chosen, and what is drawn of each."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from experiments import overlap_pictures
from experiments.overlap_pictures import SIDE, most_overlapping, overlap_of
from mrcnn_jax.config import DataConfig, Experiment
from mrcnn_jax.data import shapes
from mrcnn_jax.data.image_io import read_image
from mrcnn_jax.detections import Detections


def record(boxes, classes):
    objects = SimpleNamespace(boxes=np.float32(boxes).reshape(-1, 4), classes=np.int32(classes))
    return SimpleNamespace(objects=objects)


def test_images_are_chosen_by_the_overlap_of_objects_of_one_class():
    box, half, apart = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]
    expected = {
        0.5: record([box, half], [1, 1]),
        2.0: record([box, half, half], [1, 1, 1]),  # 0.5 + 0.5 + 1
        0.0: record([box, box, apart], [1, 2, 1]),
    }
    assert [overlap_of(each) for each in expected.values()] == list(expected)
    records = [*expected.values(), record([], [])]
    assert most_overlapping(records, 2) == [expected[2.0], expected[0.5]]


class StandIn(NamedTuple):
    """A detector that finds one box, whose colour is the first, in every image."""

    experiment: Experiment

    def __call__(self, image):
        height, width = image.shape[:2]
        return Detections(np.float32([[0, 0, width, height]]), np.ones(1, np.float32), np.int32([0]), None)


def test_rows_have_the_annotations_and_the_detections_of_each_run(monkeypatch, tmp_path, capsys):
    shapes.prepare(tmp_path / "set", shapes.ShapesConfig(train_images=1, validation_images=3))
    experiment = Experiment(data=DataConfig(dataset=str(tmp_path / "set")))
    monkeypatch.setattr(overlap_pictures, "load", lambda run: StandIn(experiment))
    picture = tmp_path / "overlaps.jpg"
    assert overlap_pictures.main([str(picture), "one", "two", "--images", "2"]) == 0
    height, width, _ = read_image(picture).shape
    assert 3 * SIDE < width < 3.3 * SIDE and 1.5 * SIDE < height < 2.5 * SIDE
    assert picture.stat().st_size < 200_000
    assert overlap_pictures.main([str(picture), "one", "--images", "0"]) == 2
    assert "--images of 1 or more" in capsys.readouterr().err
