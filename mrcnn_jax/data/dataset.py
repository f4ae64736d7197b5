"""Prepared data sets on disk: the records they hold and random access to them.

A prepared set is a TensorFlow Datasets directory in array_record format, read and written without
TensorFlow, with one ``<split>_sizes.npy`` per split: the height and width of every image, so that images
are grouped by shape without reading a record. Other programs read it with TFDS alone::

    tfds.builder_from_directory(directory).as_data_source("train")
"""

import json
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mrcnn_jax.data.coco_keypoints import PERSON_SIGMAS
from mrcnn_jax.errors import InputError, first_line
from mrcnn_jax.paths import read_bytes
from mrcnn_jax.structures import DatasetInfo


class Objects(NamedTuple):
    """The n annotated objects of one image; n and J may be 0."""

    ids: Int[np.ndarray, "n"]  # int64, the data set's own annotation ids
    boxes: Float[np.ndarray, "n 4"]  # float64, xyxy in pixels of the stored image, as annotated (not clipped)
    classes: Int[np.ndarray, "n"]  # int32, 0..K-1
    areas: Float[np.ndarray, "n"]  # float64, the annotation's own area in pixels
    crowd: Bool[np.ndarray, "n"]
    rles: list[str]  # counts of COCO's compressed RLE of the whole image; "" for an object without a mask
    keypoints: Float[np.ndarray, "n J 3"]  # float32, x, y, visibility (0 unlabelled, 1 hidden, 2 visible)


class Record(NamedTuple):
    """One image and its objects."""

    image: bytes  # content of the JPEG or PNG file
    image_id: int
    file_name: str
    height: int
    width: int
    objects: Objects
    upright: bool = False  # the image is to be decoded with its EXIF orientation


class DatasetSplit:
    """Random access to the records of one split: ``len(split)``, ``split[i]``, iteration.

    Safe to use from several threads; pickled as its name only, so that every process opens its own files.

    Attributes:
        info: names and ids of classes and keypoints.
        sizes: height and width of every image.

    Raises:
        InputError: from the constructor if the directory is no prepared data set or has no such split; from
            ``split[i]``, naming the record and its file, which carries a checksum of every record.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        import tensorflow_datasets as tfds  # a tenth of a second that prediction saves

        self.directory, self.split = Path(directory).absolute(), split
        self.info, _ = read_metadata(self.directory)
        _require_files(self.directory)
        try:
            builder = tfds.builder_from_directory(self.directory)
            if split not in builder.info.splits:
                raise InputError(f"{directory} has no split '{split}', only {', '.join(builder.info.splits)}")
            self._source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            self._files = builder.info.splits[split].filepaths
            self._ends = np.cumsum(builder.info.splits[split].shard_lengths)
            self.sizes: Int[np.ndarray, "N 2"] = np.load(self.directory / f"{split}_sizes.npy")
            if self.sizes.shape != (self._ends[-1], 2):
                raise ValueError(f"{split}_sizes.npy is of another number of images")
        except InputError:
            raise
        except Exception as error:  # TFDS and protobuf raise various types for missing and damaged files
            reason = f"it is damaged ({first_line(error)})"
            raise InputError(f"cannot open {self.directory}: {reason}: prepare the set again") from error
        self._ground_truth: dict[str, list[dict]] | None = None

    @property
    def parts(self) -> tuple["DatasetSplit", ...]:
        """The split itself, as the only part of a ``Mixture``."""
        return (self,)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        try:
            example = self._source[index]
        except (RuntimeError, ValueError) as error:  # ValueError: TFDS, given nothing beyond a file's end
            file = self._files[np.searchsorted(self._ends, index, side="right")]
            reason = " ".join(str(error).split())
            message = f"cannot read record {index} of {self.split} in {file}"
            raise InputError(f"{message}: it is missing, damaged or cut short ({reason})") from error
        objects = example.pop("objects")
        keypoints = objects.pop("keypoints", np.zeros((len(objects["ids"]), 0, 3), np.float32))
        for field in ("boxes", "areas"):  # stored as bytes, which come back read-only
            objects[field] = objects[field].copy()
        rles = [rle.decode() for rle in objects.pop("rles")]
        example["file_name"] = example["file_name"].decode("utf-8", "surrogatepass")
        example["upright"] = bool(example.get("upright", False))
        numbers = {field: int(example.pop(field)) for field in ("image_id", "height", "width")}
        return Record(**example, **numbers, objects=Objects(**objects, rles=rles, keypoints=keypoints))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def ground_truth(self) -> dict[str, list[dict]]:
        """Returns the split as a COCO dictionary (``to_coco``), built once and shared: not to be modified."""
        if self._ground_truth is None:
            self._ground_truth = to_coco(self.info, self)
        return self._ground_truth

    def __reduce__(self):
        return DatasetSplit, (self.directory, self.split)

    def __repr__(self) -> str:
        return f"DatasetSplit({str(self.directory)!r}, {self.split!r})"


def open_dataset(directory: str | os.PathLike, split: str) -> DatasetSplit:
    """Opens one split of a prepared data set.

    Raises:
        InputError: the directory is no prepared data set, or has no such split.
    """
    return DatasetSplit(directory, split)


def split_names(directory: str | os.PathLike) -> tuple[str, ...]:
    """Returns the names of a prepared data set's splits.

    Raises:
        InputError: the directory is no prepared data set.
    """
    return tuple(read_metadata(directory)[1])


def is_prepared(directory: str | os.PathLike) -> bool:
    """Returns whether a directory is a prepared data set."""
    try:
        return bool(read_metadata(directory))
    except InputError:
        return False


def _require_files(directory: Path) -> None:
    """Raises InputError for a pipe, a device or a folder in place of a file of a data set."""
    for path in sorted(directory.iterdir()):
        ours = path.suffix in (".json", ".npy", ".npz") or ".array_record-" in path.name
        if ours and path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise InputError(f"{path} is {kind}, not a file of the data set: prepare the set again")


def read_metadata(directory: str | os.PathLike) -> tuple[DatasetInfo, dict[str, dict[str, Any]]]:
    """Reads the description of a prepared data set, and the statistics of each split.

    Raises:
        InputError: the directory is no prepared data set.
    """
    try:
        metadata = json.loads(read_bytes(Path(directory) / "metadata.json"))
        dataset, statistics = metadata["dataset"], metadata["statistics"]
        dataset["skeleton"] = tuple(map(tuple, dataset["skeleton"]))
        info = DatasetInfo(**{k: tuple(v) if isinstance(v, list) else v for k, v in dataset.items()})
    except (OSError, ValueError, KeyError, TypeError):
        advice = "prepare one there first"
        if Path(directory).exists():
            command = shlex.join(["mrcnn", "dataset", str(directory)])
            advice = f"`{command}` prepares one, if it has images and annotations"
        raise InputError(f"{directory} is not a prepared data set: {advice}") from None
    if info.keypoint_names and "keypoint_classes" not in dataset:  # prepared before these fields were stored
        sigmas = PERSON_SIGMAS if len(info.keypoint_names) == len(PERSON_SIGMAS) else ()
        info = info._replace(keypoint_classes=tuple(range(info.num_classes)), keypoint_sigmas=sigmas)
    return info, statistics


def to_coco(info: DatasetInfo, records: Iterable[Record]) -> dict[str, list[dict]]:
    """Returns records as a COCO ground-truth dictionary for pycocotools.

    Ids, areas, crowd flags, masks and keypoints are those of the data set; a box is x, y, width, height
    again, equal up to the rounding of float64. Masks are compressed RLE; an object without one has no
    "segmentation". Only categories whose objects have keypoints name any; other objects have zeros, because
    pycocotools reads the keypoints of all objects.
    """
    images, annotations = [], []
    for record in records:
        fields = {key: getattr(record, key) for key in ("file_name", "height", "width")}
        images.append(fields | {"id": record.image_id})
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
    return {"images": images, "annotations": annotations, "categories": coco_categories(info)}


def coco_categories(info: DatasetInfo) -> list[dict[str, Any]]:
    """Returns the classes of a data set as categories in COCO format."""
    names = zip(info.category_ids, info.category_names, strict=True)
    categories: list[dict[str, Any]] = [{"id": id_, "name": name} for id_, name in names]
    for class_ in info.keypoint_classes:
        categories[class_]["keypoints"] = list(info.keypoint_names)
        categories[class_]["skeleton"] = [[a + 1, b + 1] for a, b in info.skeleton]
    return categories
