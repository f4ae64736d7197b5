"""Image files below folders, without what operating systems and tools leave there."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_local

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .tif .tiff .webp .gif .jp2 .j2k .avif .ppm .pgm .pbm .pnm".split()
)
"""Suffixes of the files that are taken from a folder, in lower case."""
_LEFTOVERS = frozenset(["__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin"])


class Found(NamedTuple):
    """Image files, and the number of other files beside them by suffix."""

    files: list[Path]
    skipped: dict[str, int]


def find_image_files(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> Found:
    """Returns the given files, and the image files in and below given folders in alphabetical order.

    One path is like a list of it. Hidden files and what operating systems leave behind is passed over without
    being counted.

    Raises:
        InputError: something is no path, a path does not exist or is an address, or there are no image files.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    for path in listed:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"image files are given by their paths, not as {type(path).__name__}")
        require_local(path, "image")
    given, files, skipped = list(map(Path, listed)), [], {}
    for path in given:
        if not path.exists():
            raise InputError(f"there is no image file or folder {path}")
        if not path.is_dir():
            files.append(path)
            continue
        for file in walk(path):
            suffix = file.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                files.append(file)
            else:
                skipped[suffix] = skipped.get(suffix, 0) + 1
    if not files:
        named, suffixes = ", ".join(map(str, given)) or "the command line", ", ".join(sorted(IMAGE_SUFFIXES))
        raise InputError(f"no image files in {named}: give image files, or folders that hold {suffixes}")
    return Found(files, skipped)


def walk(folder: Path, levels: float = math.inf) -> Iterator[Path]:
    """Yields the files in and below a folder in alphabetical order, without hidden ones and leftovers.

    Links to folders are followed, but no folder is visited twice.

    Args:
        folder: where to begin.
        levels: number of levels of folders, the first included.
    """
    visited = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        place, depth = os.path.realpath(root), len(Path(root).relative_to(folder).parts)
        goes_on = place not in visited and depth + 1 < levels
        folders[:] = sorted(name for name in folders if not is_leftover(name)) if goes_on else []
        if place not in visited:
            yield from (Path(root, name) for name in sorted(files) if not is_leftover(name))
        visited.add(place)


def image_files_in(folder: Path) -> Iterator[Path]:
    """Yields the image files in and below a folder, by their suffixes."""
    return (path for path in walk(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def is_leftover(name: str) -> bool:
    """Returns whether a file or folder is hidden, or left behind by an operating system or a NAS."""
    return name.startswith(".") or name.lower() in _LEFTOVERS
