"""Contents of a data set: its splits with all their objects."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mrcnn_jax.data.dataset import DatasetSplit, Record, is_prepared, open_dataset, read_metadata
from mrcnn_jax.data.object_table import ObjectTable, build_table, read_table
from mrcnn_jax.data.prepare import prepare
from mrcnn_jax.structures import DatasetInfo

Progress = Callable[[int, int], object]
"""Called with the number of records read and that of all."""


@dataclass(frozen=True)
class Split:
    """Images and objects of a split."""

    records: DatasetSplit
    statistics: dict[str, Any]
    table: ObjectTable


@dataclass(frozen=True)
class DatasetContents:
    """A data set."""

    info: DatasetInfo
    splits: dict[str, Split]
    notes: Sequence[str] = ()  # what a folder's reader mended, left out and warns of
    prepared: bool = True


@contextmanager
def open_contents(path: Path, progress: Progress | None = None) -> Iterator[DatasetContents]:
    """Opens a data set. A folder in another format is prepared in a temporary directory first.

    Records are read one by one only if the set is older than the tables of objects.

    Args:
        path: of the set, or what `mrcnn dataset` takes.
        progress: of that reading; None shows no bar while a folder is prepared.

    Raises:
        InputError: it cannot be read.
    """
    if is_prepared(path):
        yield _open(path, progress or (lambda done, total: None))
        return
    with TemporaryDirectory(prefix="mrcnn_jax_") as folder:
        name = path.stem if path.is_file() else path.absolute().name
        found = prepare(path, Path(folder, "set"), name=name, progress=progress is not None)
        notes = [line for report in found.reports.values() for line in str(report).splitlines()]
        opened = _open(found.directory, lambda done, total: None)
        yield DatasetContents(opened.info, opened.splits, notes, prepared=False)


def _open(path: Path, progress: Progress) -> DatasetContents:
    info, statistics = read_metadata(path)
    splits = {name: open_dataset(path, name) for name in statistics}
    stored = {name: read_table(path, name, len(split)) for name, split in splits.items()}
    total, done = sum(len(splits[name]) for name, table in stored.items() if table is None), 0

    def counted(records: DatasetSplit) -> Iterator[Record]:
        nonlocal done
        for record in records:
            yield record
            done += 1
            progress(done, total)

    found = {
        name: Split(split, statistics[name], stored[name] or build_table(counted(split)))
        for name, split in splits.items()
    }
    return DatasetContents(info, found)
