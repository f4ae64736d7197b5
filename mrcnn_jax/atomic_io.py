"""Files that are written whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

from etils import epath


@contextmanager
def replacing(path: str | PathLike) -> Iterator[epath.Path]:
    """Where to write what shall be at ``path``: it gets there when the block ends, and not at all if the block fails.

    Its name ends as that of ``path`` does. Folders above it are made. Paths of object stores (gs://...) will do.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | PathLike, text: str) -> None:
    """Text in UTF-8."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: str | PathLike, content: Any, indent: int = 1) -> None:
    """JSON as the standard has it: ValueError for NaN and infinity."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")
