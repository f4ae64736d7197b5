"""Data sets of small noise images in memory, and their training batches."""

import cv2
import jax
import numpy as np

from mrcnn_jax.config import DataConfig
from mrcnn_jax.data.dataset import Objects, Record
from mrcnn_jax.data.pipeline import training_batches
from mrcnn_jax.structures import DatasetInfo

CONFIG = DataConfig(
    short_edge=(16, 24), short_edge_test=20, long_edge=40, max_objects=3, mask_size=4, threads=2
)
INFO = DatasetInfo("things", (1, 2), ("a", "b"))
LANDSCAPE, PORTRAIT = (12, 18), (18, 12)


class Source(list):
    """Records in memory, like a DatasetSplit."""

    info = INFO

    @property
    def sizes(self):
        return np.array([(record.height, record.width) for record in self])


def source(*sizes: tuple[int, int]) -> Source:
    """Images of noise of these sizes with ids 100, 101, ... and 0 to 3 objects."""
    made = Source()
    for i, (height, width) in enumerate(sizes):
        rng, count = np.random.default_rng(i), i % 4
        data = cv2.imencode(".png", rng.integers(0, 255, (height, width, 3), np.uint8))[1].tobytes()
        corners = rng.uniform(0, 8, (count, 2))
        objects = Objects(
            ids=np.arange(count) + 1,
            boxes=np.concatenate([corners, corners + rng.uniform(1, 4, (count, 2))], axis=1),
            classes=rng.integers(0, 2, count).astype(np.int32),
            areas=rng.uniform(1, 9, count),
            crowd=np.zeros(count, bool),
            rles=[""] * count,
            keypoints=np.zeros((count, 0, 3), np.float32),
        )
        made.append(Record(data, 100 + i, f"{i}.png", height, width, objects))
    return made


# 10 landscape (2 square), 4 portrait
MIXED = source(*[LANDSCAPE, PORTRAIT, LANDSCAPE, (15, 15), LANDSCAPE, PORTRAIT, LANDSCAPE] * 2)


def pixels(record: Record) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(record.image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def batches(given=MIXED, config=CONFIG, **options):
    options = {"steps": 9, "images_per_process": 4, "seed": 5} | options
    return list(training_batches(given, config, **options))


def shares(processes: int, **options):
    """The batches of 4 images of each of several processes."""
    options |= {"images_per_process": 4 // processes, "processes": processes}
    return [batches(**options, process=process) for process in range(processes)]


def joined(parts):
    """The global batches of several processes."""
    steps = zip(*parts, strict=True)
    return [jax.tree.map(lambda *arrays: np.concatenate(arrays), *step) for step in steps]


def ids(made) -> list[list[int]]:
    return [info.image_ids.tolist() for _, info in made]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
