"""Files that are written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrcnn_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath


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
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def require_place(path: str | PathLike) -> None:
    """Raises InputError if a file or folder cannot be made at a path; leaves nothing there."""
    above = next(parent for parent in Path(path).absolute().parents if os.path.lexists(parent))
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be written: {above}: {error.strerror or error}") from error


def write_text(path: str | PathLike, text: str) -> None:
    """Writes text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | PathLike, content: Any, indent: int = 1) -> None:
    """Writes standard JSON; raises ValueError for NaN and infinity, which the standard lacks."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
