"""Image and video files below folders, without what operating systems and tools leave there."""

import glob
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_local

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .tif .tiff .webp .gif .jp2 .j2k .avif .ppm .pgm .pbm .pnm".split()
)
"""Suffixes of the files that are taken from a folder, in lower case."""
VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv".split())
"""Suffixes of videos."""
_LEFTOVERS = frozenset(["__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin"])


class ImageListing(NamedTuple):
    """Image files, perhaps with videos, and the number of other files beside them by suffix."""

    files: list[Path]
    skipped: dict[str, int]


def find_image_files(
    paths: str | os.PathLike | Iterable[str | os.PathLike], suffixes: Collection[str] = IMAGE_SUFFIXES
) -> ImageListing:
    """Returns the given files, and the image files in and below given folders in alphabetical order.

    A path that does not exist and has ``*``, ``?`` or ``[`` in it is a pattern, which stands for the files
    and folders that match; ``**`` matches any number of folders. Hidden files and what operating systems
    leave behind is passed over without being counted.

    Args:
        paths: files, folders and patterns; one is like a list of it.
        suffixes: of the files that are taken from folders and patterns.

    Raises:
        InputError: something is no path, a path does not exist or is an address, or there are no image files.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    for path in listed:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"image files are given by their paths, not as {type(path).__name__}")
        require_local(path, "image")
    given, files, others = list(map(Path, listed)), [], []
    for path in given:
        if path.exists() and not path.is_dir():
            files.append(path)
            continue
        for file in walk(path) if path.exists() else _matches(path):
            (files if file.suffix.lower() in suffixes else others).append(file)
    if not files:
        named, taken = ", ".join(map(str, given)) or "the command line", ", ".join(sorted(suffixes))
        raise InputError(f"no image files in {named}: give image files, or folders that hold {taken}")
    return ImageListing(files, dict(Counter(file.suffix.lower() for file in others)))


def is_pattern(path: str | os.PathLike) -> bool:
    """Returns whether a path is a pattern and no file or folder."""
    return glob.has_magic(os.fspath(path)) and not os.path.lexists(path)


def _matches(pattern: Path) -> Iterable[Path]:
    """Returns the files that match a pattern, and those below the folders that do, each once."""
    if not is_pattern(pattern):
        raise InputError(f"there is no image file or folder {pattern}")
    found = map(Path, sorted(glob.glob(str(pattern), recursive=True)))
    places = (place for place in found if not is_leftover(place.name))
    return dict.fromkeys(file for place in places for file in (walk(place) if place.is_dir() else [place]))


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
        descend = place not in visited and depth + 1 < levels
        folders[:] = sorted(name for name in folders if not is_leftover(name)) if descend else []
        if place not in visited:
            yield from (Path(root, name) for name in sorted(files) if not is_leftover(name))
        visited.add(place)


def image_files_in(folder: Path) -> Iterator[Path]:
    """Yields the image files in and below a folder, by their suffixes."""
    return (path for path in walk(folder) if path.suffix.lower() in IMAGE_SUFFIXES)


def files_by_suffix(folder: Path) -> dict[str, list[Path]]:
    """Returns the files in and below a folder, or a file, by their suffixes in lower case, in order."""
    files: dict[str, list[Path]] = {}
    for path in walk(folder) if folder.is_dir() else [folder]:
        files.setdefault(path.suffix.lower(), []).append(path)
    return files


def is_leftover(name: str) -> bool:
    """Returns whether a file or folder is hidden, or left behind by an operating system or a NAS."""
    return name.startswith(".") or name.lower() in _LEFTOVERS
