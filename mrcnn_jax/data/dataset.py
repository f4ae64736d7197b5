"""The one on-disk format: images and their objects as a TensorFlow Datasets set in array_record, without TensorFlow.

A prepared directory holds, besides what TFDS writes, one ``<split>_sizes.npy`` per split: the height and width of every
image, so that images can be grouped by shape without reading a record. It needs nothing of this package to be read::

    tfds.builder_from_directory(directory).as_data_source("train")

Two properties of TFDS decide how records are stored and written:

- a ``tf.train.Example`` holds floats in single precision only, so boxes and areas, which must come back exactly for the
  evaluation, are stored as the bytes of float64 arrays;
- the writer behind ``download_and_prepare`` keeps a split in memory up to 1 GB and asks for TensorFlow beyond that, so
  the records go through ``tfds.core.SequentialWriter``, which keeps one image at a time and the given order.
"""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, Int
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo

IMAGES_PER_SHARD = 2048  # a few hundred megabytes of ordinary photographs
SMALL, LARGE = 32.0**2, 96.0**2  # areas in pixels between which COCO calls an object medium
# COCO's published tolerances of its 17 person keypoints (OKS): nose; then eyes, ears, shoulders, elbows, wrists, hips,
# knees and ankles, left before right.
PERSON_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip


class Objects(NamedTuple):
    """The n annotated objects of one image; n may be 0 and J may be 0."""

    ids: Int[np.ndarray, "n"]  # int64, the data set's own annotation ids
    boxes: Float[np.ndarray, "n 4"]  # float64, xyxy in pixels of the stored image, as annotated (not clipped)
    classes: Int[np.ndarray, "n"]  # int32, 0..K-1
    areas: Float[np.ndarray, "n"]  # float64, the annotation's own area in pixels
    crowd: Bool[np.ndarray, "n"]
    rles: list[str]  # counts of the compressed RLE in the whole image's frame (COCO); "" for an object without a mask
    keypoints: Float[np.ndarray, "n J 3"]  # float32, x, y, visibility (0 unlabelled, 1 hidden, 2 visible)


class Record(NamedTuple):
    """One image and its objects."""

    image: bytes  # the JPEG or PNG file as it is
    image_id: int
    file_name: str
    height: int
    width: int
    objects: Objects


class RecordsBuilder(tfds.core.GeneratorBasedBuilder):
    """The TFDS side of the format: features, splits and how a record becomes an example."""

    name = "mrcnn_records"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, info: DatasetInfo, splits: Mapping[str, Iterable[Record]], **kwargs: Any):
        self._dataset, self._splits = info, splits
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        tensor = tfds.features.Tensor
        objects = {
            "ids": tensor(shape=(None,), dtype=np.int64),
            "boxes": tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),
            "classes": tensor(shape=(None,), dtype=np.int32),
            "areas": tensor(shape=(None,), dtype=np.float64, encoding="bytes"),
            "crowd": tensor(shape=(None,), dtype=np.bool_),
            "rles": tfds.features.Sequence(tfds.features.Text()),
        }
        num_keypoints = len(self._dataset.keypoint_names)
        if num_keypoints:  # an array with an axis of length 0 does not survive the way to disk and back
            objects["keypoints"] = tensor(shape=(None, num_keypoints, 3), dtype=np.float32)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image_id": tfds.features.Scalar(np.int64),
            "file_name": tfds.features.Text(),
            "height": tfds.features.Scalar(np.int32),
            "width": tfds.features.Scalar(np.int32),
            "objects": objects,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(dataset=self._dataset._asdict(), statistics={}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(records) for split, records in self._splits.items()}

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[int, dict]]:
        for position, record in enumerate(records):
            objects = record.objects._asdict()
            if not self._dataset.keypoint_names:
                del objects["keypoints"]
            yield position, record._asdict() | {"image": io.BytesIO(record.image), "objects": objects}


class _Statistics:
    """Passes records through unchanged and counts what a summary shows of them."""

    def __init__(self, num_classes: int):
        self.sizes: list[tuple[int, int]] = []
        self.objects_per_image: list[int] = []
        self.per_class = np.zeros(num_classes, np.int64)
        self.counts = dict.fromkeys(("crowd", "small", "medium", "large", "without_mask", "with_keypoints"), 0)

    def watch(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            objects = record.objects
            self.sizes.append((record.height, record.width))
            self.objects_per_image.append(len(objects.ids))
            self.per_class += np.bincount(objects.classes, minlength=len(self.per_class))
            found = {
                "crowd": objects.crowd,
                "small": objects.areas < SMALL,
                "medium": (objects.areas >= SMALL) & (objects.areas < LARGE),
                "large": objects.areas >= LARGE,
                "without_mask": [not rle for rle in objects.rles],
                "with_keypoints": (objects.keypoints[..., 2] > 0).any(axis=1),
            }
            for kind, which in found.items():
                self.counts[kind] += int(np.sum(which))
            yield record

    def as_dict(self) -> dict[str, Any]:
        def spread(values: Any) -> list[float]:
            return [float(f(values)) for f in (np.min, np.median, np.max)]

        heights, widths = zip(*self.sizes, strict=True)
        return self.counts | {
            "images": len(self.sizes),
            "objects": sum(self.objects_per_image),
            "empty_images": self.objects_per_image.count(0),
            "objects_per_class": self.per_class.tolist(),
            "objects_per_image": spread(self.objects_per_image),
            "heights": spread(heights),
            "widths": spread(widths),
        }


def write(
    directory: str | os.PathLike,
    info: DatasetInfo,
    splits: Mapping[str, Iterable[Record]],
    *,
    progress: bool = False,
    overwrite: bool = False,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> None:
    """Writes a prepared data set, all of it or nothing: the directory appears under its name when it is complete.

    Records are stored in the order given and never held together in memory, so a split may be a generator.

    Args:
        directory: where the set goes.
        info: what its classes and keypoints are called.
        splits: the records of each split, by its name.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared set of that name; anything else of that name is never touched.
        images_per_shard: where one file ends and the next begins.

    Raises:
        InputError: the directory exists, or a split has no images.
    """
    directory = Path(directory).absolute()
    if directory.exists() and not overwrite:
        raise InputError(f"{directory} exists already: choose another name, or overwrite it if it is a prepared set.")
    if directory.exists() and not _is_prepared(directory):
        raise InputError(f"{directory} exists and is not a prepared data set, so it is not overwritten.")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        prepared = _write(temporary, info, splits, progress, images_per_shard)
        if directory.exists():
            directory.rename(temporary / "replaced")
        prepared.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    root: Path, info: DatasetInfo, splits: Mapping[str, Iterable[Record]], progress: bool, images_per_shard: int
) -> Path:
    totals = {split: len(records) if isinstance(records, Sized) else None for split, records in splits.items()}
    statistics = {split: _Statistics(info.num_classes) for split in splits}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars:
        watched = {
            split: bars.track(statistics[split].watch(records), total=totals[split], description=split)
            for split, records in splits.items()
        }
        builder = RecordsBuilder(info, watched, data_dir=root)
        path = Path(builder.data_dir)
        path.mkdir(parents=True)
        writer = tfds.core.SequentialWriter(builder.info, images_per_shard, file_format="array_record")
        writer.initialize_splits(list(splits))
        for split, examples in builder._split_generators(None).items():
            writer.add_examples({split: (example for _, example in examples)})
            if not statistics[split].sizes:
                raise InputError(f"The split '{split}' has no images: a split needs at least one.")
            np.save(path / f"{split}_sizes.npy", np.asarray(statistics[split].sizes, np.int32))
            builder.info.metadata["statistics"][split] = statistics[split].as_dict()
        writer.close_all()
    return path


class DatasetSplit:
    """Random access to the records of one split: ``len(source)``, ``source[i]``, iteration.

    Safe to use from several threads, and pickled as its name only, so that every process opens its own files.

    Raises:
        InputError: from ``source[i]``, naming the record and its file, which carries a checksum of every record.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        self.directory, self.split = Path(directory).absolute(), split
        self.info, _ = _metadata(self.directory)
        builder = tfds.builder_from_directory(self.directory)
        if split not in builder.info.splits:
            raise InputError(f"{directory} has no split '{split}', only {', '.join(builder.info.splits)}.")
        self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self._files, self._ends = builder.info.splits[split].filepaths, np.cumsum(builder.info.splits[split].shard_lengths)
        self.sizes: Int[np.ndarray, "N 2"] = np.load(self.directory / f"{split}_sizes.npy")  # height, width

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        try:
            example = self._source[index]
        except (RuntimeError, ValueError) as error:  # what the reader raises, and TFDS of the nothing that it reads beyond a file's end
            file, reason = self._files[np.searchsorted(self._ends, index, side="right")], " ".join(str(error).split())
            raise InputError(f"cannot read record {index} of {self.split} in {file}: it is missing, damaged or cut short ({reason})") from error
        objects = example["objects"]
        num_objects = len(objects["ids"])
        return Record(
            image=example["image"],
            image_id=int(example["image_id"]),
            file_name=example["file_name"].decode(),
            height=int(example["height"]),
            width=int(example["width"]),
            objects=Objects(
                ids=objects["ids"],
                boxes=objects["boxes"].copy(),  # what is stored as bytes comes back read-only
                classes=objects["classes"],
                areas=objects["areas"].copy(),
                crowd=objects["crowd"],
                rles=[rle.decode() for rle in objects["rles"]],
                keypoints=objects.get("keypoints", np.zeros((num_objects, 0, 3), np.float32)),
            ),
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self):
        return DatasetSplit, (self.directory, self.split)

    def __repr__(self) -> str:
        return f"RecordSource({str(self.directory)!r}, {self.split!r})"


def open_dataset(directory: str | os.PathLike, split: str) -> DatasetSplit:
    """Opens one split of a prepared data set.

    Raises:
        InputError: the directory is no prepared data set, or has no such split.
    """
    return DatasetSplit(directory, split)


def splits(directory: str | os.PathLike) -> tuple[str, ...]:
    """The names of the splits of a prepared data set.

    Raises:
        InputError: the directory is no prepared data set.
    """
    return tuple(_metadata(Path(directory))[1])


def _metadata(directory: Path) -> tuple[DatasetInfo, dict[str, dict]]:
    """The data set's info and the statistics of each split."""
    try:
        metadata = json.loads((directory / "metadata.json").read_text())
        dataset, statistics = metadata["dataset"], metadata["statistics"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{directory} is not a prepared data set: prepare one there first.") from None
    dataset["skeleton"] = tuple(map(tuple, dataset["skeleton"]))
    info = DatasetInfo(**{k: tuple(v) if isinstance(v, list) else v for k, v in dataset.items()})
    if info.keypoint_names and "keypoint_classes" not in dataset:  # prepared before these two fields were stored
        sigmas = PERSON_SIGMAS if len(info.keypoint_names) == len(PERSON_SIGMAS) else ()
        info = info._replace(keypoint_classes=tuple(range(info.num_classes)), keypoint_sigmas=sigmas)
    return info, statistics


def _is_prepared(directory: Path) -> bool:
    try:
        return bool(_metadata(directory))
    except InputError:
        return False


def ground_truth(source: DatasetSplit) -> dict[str, list[dict]]:
    """The COCO ground-truth dictionary of a split, as pycocotools takes it.

    Ids, areas, crowd flags, masks and keypoints are those of the data set; a box is x, y, width, height again, equal up
    to the rounding of float64. Masks are compressed RLE; an object without one has no "segmentation". Only categories
    whose objects have keypoints name any; the other objects' are zeros, because pycocotools looks at all of them.
    """
    info = source.info
    images, annotations = [], []
    for record in source:
        images.append({key: getattr(record, key) for key in ("file_name", "height", "width")} | {"id": record.image_id})
        for id_, (x1, y1, x2, y2), class_, area, crowd, rle, keypoints in zip(*record.objects, strict=True):
            annotation = {
                "id": int(id_),
                "image_id": record.image_id,
                "category_id": info.category_ids[class_],
                "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                "area": float(area),
                "iscrowd": int(crowd),
            }
            if rle:
                annotation["segmentation"] = {"size": [record.height, record.width], "counts": rle}
            if info.keypoint_names:
                annotation["keypoints"] = keypoints.flatten().tolist()
                annotation["num_keypoints"] = int((keypoints[:, 2] > 0).sum())
            annotations.append(annotation)
    categories = [{"id": id_, "name": name} for id_, name in zip(info.category_ids, info.category_names, strict=True)]
    for class_ in info.keypoint_classes:
        categories[class_]["keypoints"] = list(info.keypoint_names)
        categories[class_]["skeleton"] = [[a + 1, b + 1] for a, b in info.skeleton]
    return {"images": images, "annotations": annotations, "categories": categories}


def summary(directory: str | os.PathLike) -> Group:
    """Two tables for ``rich.print``: what each split holds, and the objects of each class.

    Object sizes are COCO's: small below 32 x 32 pixels, large from 96 x 96.

    Raises:
        InputError: the directory is no prepared data set.
    """
    info, statistics = _metadata(Path(directory))
    overview = Table("", *statistics, title=info.name)
    for column in overview.columns[1:]:
        column.justify = "right"

    def spread(values: list[float]) -> str:
        return " / ".join(f"{value:g}" for value in values)

    rows = {
        "images": lambda s: f"{s['images']:,}",
        "images without objects": lambda s: f"{s['empty_images']:,}",
        "height (min / median / max)": lambda s: spread(s["heights"]),
        "width (min / median / max)": lambda s: spread(s["widths"]),
        "objects": lambda s: f"{s['objects']:,}",
        "objects per image (min / median / max)": lambda s: spread(s["objects_per_image"]),
        "small / medium / large": lambda s: f"{s['small']:,} / {s['medium']:,} / {s['large']:,}",
        "crowd": lambda s: f"{s['crowd']:,}",
        "without a mask": lambda s: f"{s['without_mask']:,}",
    }
    if info.keypoint_names:
        rows[f"with keypoints (of {len(info.keypoint_names)})"] = lambda s: f"{s['with_keypoints']:,}"
    for title, text in rows.items():
        overview.add_row(title, *map(text, statistics.values()))

    classes = Table("id", "class", *statistics, title="objects per class")
    for column in (classes.columns[0], *classes.columns[2:]):
        column.justify = "right"
    for class_, (id_, name) in enumerate(zip(info.category_ids, info.category_names, strict=True)):
        classes.add_row(str(id_), name, *(f"{s['objects_per_class'][class_]:,}" for s in statistics.values()))
    return Group(overview, classes)
