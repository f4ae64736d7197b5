"""Writing of prepared data sets, through TensorFlow Datasets without TensorFlow.

Two properties of TFDS decide how records are stored and written:

- a ``tf.train.Example`` holds floats in single precision only, so boxes and areas, which must come back
  exactly for the evaluation, are stored as the bytes of float64 arrays;
- the writer behind ``download_and_prepare`` keeps a split in memory up to 1 GB and asks for TensorFlow
  beyond that, so records go through ``tfds.core.SequentialWriter``, which keeps one image at a time and the
  given order.
"""

import glob
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mrcnn_jax.atomic_io import naming, require_writable
from mrcnn_jax.data.dataset import Record, is_prepared
from mrcnn_jax.data.statistics import Statistics
from mrcnn_jax.directory_lock import is_abandoned, locked
from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_local
from mrcnn_jax.structures import DatasetInfo

IMAGES_PER_SHARD = 2048  # a few hundred megabytes of ordinary photographs
_REPLACED = "replaced"


def write_dataset(
    directory: str | os.PathLike,
    info: DatasetInfo,
    splits: Mapping[str, Iterable[Record]],
    *,
    progress: bool = False,
    overwrite: bool = False,
    images_per_shard: int = IMAGES_PER_SHARD,
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a prepared data set, completely or not at all: the directory appears when it is complete.

    What killed processes left half-written beside it is removed, and a set that one was replacing put back.
    Records are stored in the order given and never held together in memory, so a split may be a generator.

    Args:
        directory: where to write, or a link to it.
        info: names and ids of classes and keypoints.
        splits: the records of each split, by its name.
        progress: show a progress bar on stderr.
        overwrite: replace a prepared set of that name; anything else of that name is never touched.
        images_per_shard: maximum number of images in one file.
        files: further text files of the directory, by their names.

    Raises:
        InputError: the directory exists, also if another process wrote it meanwhile, or a split has no
            images.
    """
    directory = Path(directory).absolute()
    directory = directory.resolve() if directory.is_symlink() else directory
    _clear_abandoned(directory)
    check_destination(directory, overwrite)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with naming(directory), locked(temporary, f"writes {directory}"):
            written = _write(temporary, info, splits, progress, images_per_shard)
            for name, text in files.items():
                (written / name).write_text(text)
            _move_into_place(written, directory, temporary / _REPLACED, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_abandoned(directory: Path) -> None:
    random = "?" * 8  # as tempfile names it: the folder of a set "coco" is not that of a set "coco.2"
    for left in directory.parent.glob(f".{glob.escape(directory.name)}.{random}"):
        if is_abandoned(left):
            if (left / _REPLACED).exists() and not directory.exists():  # killed between two renamings
                (left / _REPLACED).rename(directory)
            shutil.rmtree(left, ignore_errors=True)


def _move_into_place(written: Path, directory: Path, replaced: Path, overwrite: bool) -> None:
    """Moves a complete set to its directory; if that fails, the set to be replaced is put back."""
    if overwrite and directory.exists():
        directory.rename(replaced)
    try:
        written.rename(directory)  # fails on anything but an empty directory
    except BaseException as error:
        if replaced.exists():
            replaced.rename(directory)
        if isinstance(error, OSError) and directory.exists():
            raise InputError(f"{directory} exists already: another process has written it") from error
        raise


def check_destination(directory: Path, overwrite: bool = False) -> None:
    """Raises InputError unless a data set can be written to a directory."""
    require_local(directory, "the data set")
    if directory.exists() and not overwrite:
        advice = "choose another name, or overwrite it if it is a prepared set"
        raise InputError(f"{directory} exists already: {advice}")
    if directory.exists() and not is_prepared(directory):
        raise InputError(f"{directory} exists and is not a prepared data set, so it is not overwritten")
    require_writable(directory)


def _write(
    root: Path, info: DatasetInfo, splits: Mapping[str, Iterable[Record]], progress: bool, shard_size: int
) -> Path:
    path = root / "new"
    path.mkdir()
    metadata = tfds.core.MetadataDict(dataset=info._asdict(), statistics={})
    name = tfds.core.DatasetIdentity("mrcnn_records", tfds.core.Version("1.0.0"), str(path), __name__)
    described = tfds.core.DatasetInfo(builder=name, features=_features(info), metadata=metadata)
    writer = tfds.core.SequentialWriter(described, shard_size, file_format="array_record")
    writer.initialize_splits(list(splits))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bars:
        tasks = {split: bars.add_task(split, total=_length(records)) for split, records in splits.items()}
        for split, records in splits.items():
            statistics = Statistics(info.num_classes)
            counted = bars.track(statistics.count(records), task_id=tasks[split])
            writer.add_examples({split: (_to_example(record, info) for record in counted)})
            table = statistics.table()
            if not len(table.sizes):
                raise InputError(f"the split '{split}' has no images: a split needs at least one")
            np.save(path / f"{split}_sizes.npy", table.sizes)
            table.save(path, split)
            suspicions = getattr(records, "suspicions", None)  # of formats that look for them
            metadata["statistics"][split] = statistics.as_dict(table) | {
                "suspicions": suspicions.warnings() if suspicions else []
            }
    writer.close_all()
    return path


def _length(records: Iterable[Record]) -> int | None:
    return len(records) if isinstance(records, Sized) else None


def _features(info: DatasetInfo) -> tfds.features.FeaturesDict:
    tensor = tfds.features.Tensor
    objects = {
        "ids": tensor(shape=(None,), dtype=np.int64),
        "boxes": tensor(shape=(None, 4), dtype=np.float64, encoding="bytes"),
        "classes": tensor(shape=(None,), dtype=np.int32),
        "areas": tensor(shape=(None,), dtype=np.float64, encoding="bytes"),
        "crowd": tensor(shape=(None,), dtype=np.bool_),
        "rles": tfds.features.Sequence(tfds.features.Text()),
    }
    if info.keypoint_names:  # an array with an axis of length 0 does not survive being stored
        objects["keypoints"] = tensor(shape=(None, len(info.keypoint_names), 3), dtype=np.float32)
    return tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image_id": tfds.features.Scalar(np.int64),
        "file_name": tfds.features.Text(),
        "height": tfds.features.Scalar(np.int32),
        "width": tfds.features.Scalar(np.int32),
        "upright": tfds.features.Scalar(np.bool_),
        "objects": objects,
    })  # fmt: skip


def _to_example(record: Record, info: DatasetInfo) -> dict[str, Any]:
    objects = record.objects._asdict()
    if not info.keypoint_names:
        del objects["keypoints"]
    name = record.file_name.encode("utf-8", "surrogatepass")
    return record._asdict() | {"image": io.BytesIO(record.image), "file_name": name, "objects": objects}
