"""Files and folders that are written whole or not at all."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_place

if TYPE_CHECKING:
    from etils import epath

_CODES = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS
_PART = ".folder.part"
"""Name of what is being written in a folder that was there before."""
DISK_ERRORS = {os.strerror(code): code for code in _CODES}
"""Errors of files that cannot be written, by their text."""


@contextmanager
def replacing(path: str | PathLike) -> Iterator["epath.Path"]:
    """Yields a temporary path that replaces ``path`` when the block ends, and is deleted if the block raises.

    The temporary name keeps the suffix of ``path``. Parent directories are made. Buckets (gs://...) work too.
    """
    from etils import epath  # here, so that a bare accelerator machine can do without

    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with naming(path):
            yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder whose files are in a new or empty one when the block ends, else deleted.

    Raises:
        InputError: something was put there since ``require_new_folder``, or nothing can be written there.
    """
    place = folder.resolve()
    # within an empty folder, which may be another disk, such as a volume of a container
    partial = place / _PART if place.is_dir() else place.with_name(f".{place.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        with naming(folder):
            partial.mkdir(parents=True)
            yield partial
        _move_into_place(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, folder: Path) -> None:
    """Gives a folder its name; an empty folder of that name, perhaps the working directory, is filled."""
    try:
        if partial.parent == folder:
            if not _is_empty(folder):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            for file in partial.iterdir():
                file.rename(folder / file.name)
        else:
            partial.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise InputError(f"{folder} is not an empty folder any more: choose another one") from error
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error


def _is_empty(folder: Path) -> bool:
    """Returns whether a folder holds nothing but what a process has left that was killed."""
    return all(file.name == _PART for file in folder.iterdir())


def require_new_folder(folder: Path) -> None:
    """Raises InputError unless ``new_folder`` can write a folder, because it is neither there nor empty."""
    require_writable(folder)
    if folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise InputError(f"{folder} is not an empty folder: choose another one")


@contextmanager
def naming(path: str | PathLike) -> Iterator[None]:
    """Adds the name of what is written to errors of a full disk, also to those that a library reports.

    Raises:
        OSError: with the name.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = disk_error(error)
        if not found or getattr(error, "filename", None):
            raise
        raise OSError(DISK_ERRORS[found], found, str(path)) from error


def disk_error(error: BaseException) -> str | None:
    """Returns the text of the operating system's error in an error's message, if a disk is the cause."""
    return next((text for text in DISK_ERRORS if text in str(error)), None)


def require_writable(directory: str | os.PathLike, files: Sequence[str] = ()) -> None:
    """Checks that a directory can be made or written to, without leaving anything there.

    Args:
        directory: to be written, perhaps in a bucket, which is not checked.
        files: names that will be written there.

    Raises:
        InputError: it is a file or below one, an address other than gs://..., unnamed, a name is that of a
            folder, or nothing can be written there.
    """
    require_place(directory, "the output")
    if "://" in str(directory):
        return
    if any(len(os.fsencode(part)) > 255 for part in Path(directory).parts):
        raise InputError(f"cannot write to {directory}: a name in it is longer than 255 bytes")
    try:
        place = _nearest_existing(Path(directory))
        if not place.is_dir():
            raise InputError(f"cannot write to {directory}: {place} is not a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {directory}: {error.strerror or error}") from error
    for name in files:
        if Path(directory, name).is_dir():
            raise InputError(f"cannot write {Path(directory, name)}: it is a folder")


def _nearest_existing(place: Path) -> Path:
    while True:
        try:
            os.lstat(place)
            return place
        except (FileNotFoundError, NotADirectoryError):
            place = place.parent


def write_text(path: str | PathLike, text: str) -> None:
    """Writes text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | PathLike, content: Any, indent: int = 1) -> None:
    """Writes standard JSON; raises ValueError for NaN and infinity, which the standard lacks."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
