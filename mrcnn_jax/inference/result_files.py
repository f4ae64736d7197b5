"""Files of results: written during the work, so that what was done survives an interruption."""

import io
import json
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO, Any

from etils import epath

from mrcnn_jax.atomic_io import replacing
from mrcnn_jax.errors import InputError


class Autosave:
    """Calls a function now and then: seldom enough that it takes a twentieth of the time at most.

    Args:
        save: writes everything that was found so far.
        seconds: minimum time between two calls.
    """

    def __init__(self, save: Callable[[], None], seconds: float = 10.0):
        self._save, self._seconds, self._due = save, seconds, time.monotonic() + seconds

    def __call__(self) -> None:
        """Saves if it is due."""
        begin = time.monotonic()
        if begin < self._due:
            return
        self._save()
        end = time.monotonic()
        self._due = end + max(self._seconds, 20 * (end - begin))


class JsonList:
    """A list of JSON values that grows in a temporary file, so that it takes a megabyte of memory at most."""

    def __init__(self):
        self._file = tempfile.SpooledTemporaryFile(2**20, "w+", encoding="utf-8")
        weakref.finalize(self, self._file.close)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def extend(self, values: Iterable[Any]) -> None:
        """Adds values; raises ValueError for NaN and infinity, which standard JSON lacks."""
        for value in values:
            self._file.write(f"{',' if self._length else ''}\n{json.dumps(value, allow_nan=False)}")
            self._length += 1

    def copy_to(self, stream: IO[str]) -> None:
        """Writes the list so far as JSON, one value a line."""
        self._file.seek(0)
        stream.write("[")
        shutil.copyfileobj(self._file, stream)
        stream.write("\n]")
        self._file.seek(0, os.SEEK_END)

    def read(self) -> list[Any]:
        """Returns the values so far."""
        stream = io.StringIO()
        self.copy_to(stream)
        return json.loads(stream.getvalue())


def write_list(path: str | os.PathLike, values: JsonList) -> None:
    """Writes a list as a JSON file."""
    with replacing(path) as temporary, temporary.open("w") as stream:
        values.copy_to(stream)
        stream.write("\n")


def write_object(path: str | os.PathLike, fields: Mapping[str, Any], lists: Mapping[str, JsonList]) -> None:
    """Writes an object of JSON values and of lists as a JSON file."""
    with replacing(path) as temporary, temporary.open("w") as stream:
        begin = "{"
        for name, value in {**fields, **lists}.items():
            stream.write(f"{begin}\n{json.dumps(name)}: ")
            value.copy_to(stream) if isinstance(value, JsonList) else json.dump(value, stream)
            begin = ","
        stream.write("\n}\n")


LEGEND = "masks/legend.json"
LISTS = "results.json", "coco.json", "images.json"
"""Names of the lists of a prediction."""


def earlier_files(directory: str | os.PathLike) -> list[Any]:
    """Returns the files of an earlier prediction in a directory, and its lists last.

    Raises:
        InputError: the directory has lists that no prediction wrote.
    """
    folder = epath.Path(directory)
    lists = [folder / name for name in LISTS if (folder / name).exists()]
    if not lists:
        return []
    try:
        entries = json.loads((folder / "images.json").read_bytes())
        pictures = dict.fromkeys(name for entry in entries for name in _pictures(entry))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = " and ".join(file.name for file in lists)
        raise InputError(
            f"{directory} holds {names} of something else than an earlier prediction: choose another folder"
        ) from None
    sheets = [folder / name for name in ("contact_sheet.png", "contact_sheet.jpg", LEGEND)]
    return [folder / name for name in pictures] + sheets + lists


def _pictures(entry: dict[str, Any]) -> Iterator[str]:
    """Yields the names of an image's pictures; raises ValueError for other names."""
    number = f"{int(entry['id']):04}_"
    for key, folder, suffixes in _KINDS:
        names = entry.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            path = PurePosixPath(name)
            first = r"\d{4,}_" if key == "video" else number  # that of its first frame
            in_place = re.match(first, path.name) and str(path) == f"{folder}{path.name}"
            if not in_place or path.suffix not in suffixes:
                raise ValueError(name)
            yield name


_KINDS = (
    ("picture", "", (".png", ".jpg")), ("masks", "masks/", (".png",)), ("crops", "crops/", (".png", ".jpg")),
    ("video", "", (".mp4",)),
)  # fmt: skip
"""Fields of images.json that name files, the folders of those, and their suffixes."""
