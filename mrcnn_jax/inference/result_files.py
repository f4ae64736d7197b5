"""Files of results: written during the work, so that what was done survives an interruption."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

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


def earlier_files(directory: str | os.PathLike) -> list[Any]:
    """Returns the files of an earlier prediction in a directory: its pictures, and its lists last.

    Raises:
        InputError: the directory has results that no prediction wrote.
    """
    folder = epath.Path(directory)
    lists = [file for file in (folder / "results.json", folder / "images.json") if file.exists()]
    if not lists:
        return []
    try:
        entries = json.loads((folder / "images.json").read_bytes())
        return [folder / _picture(entry) for entry in entries] + lists
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = " and ".join(file.name for file in lists)
        raise InputError(
            f"{directory} holds {names} of something else than an earlier prediction: choose another folder"
        ) from None


def _picture(entry: dict[str, Any]) -> str:
    number, stem = int(entry["id"]), Path(entry["file_name"]).stem
    name = str(entry.get("picture") or f"{number:04}_{stem}.png")
    if not name.startswith(f"{number:04}_") or Path(name).suffix not in (".png", ".jpg") or "/" in name:
        raise ValueError(name)
    return name
