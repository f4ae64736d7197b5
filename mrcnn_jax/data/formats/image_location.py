"""Search for the image files that an annotation file names, as other tools and machines wrote the names."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from mrcnn_jax.data.image_files import IMAGE_SUFFIXES, is_leftover, walk
from mrcnn_jax.errors import InputError

_Entry = tuple[tuple[str, ...], Path]  # comparable components of a path below a folder, and the path


class Located(NamedTuple):
    """Image files of an annotation file."""

    paths: dict[str, Path]  # by file_name as given
    missing: tuple[str, ...]
    notes: tuple[str, ...]  # peculiarities of the names, for the report


def locate_images(
    names: Iterable[str], annotations: Path, folder: Path | None, only_exact: Set[str] = frozenset()
) -> Located:
    """Finds image files by the names in an annotation file.

    A name is a path relative to ``folder`` or the annotation file. Failing that, it is read as other tools
    write it (backslashes, ``..``, addresses, ``%20``, folders of another machine), and the file below
    ``folder`` whose path agrees in most components from the end is taken. Names may differ from the
    file's in letter case, Unicode normal form and, if nothing else fits, in the suffix. A file that lies
    where the name of one image says is not taken for another. If ``folder`` holds none of the images, the
    annotation file's folder and the one that both share are searched.

    Args:
        names: the ``file_name`` of each image.
        annotations: the annotation file, or the folder of several.
        folder: of the images, if known.
        only_exact: names for which no other file is searched.

    Raises:
        InputError: several files fit one name equally well, or one file fits several names.
    """
    names, beside = dict.fromkeys(names), annotations if annotations.is_dir() else annotations.parent
    roots = [folder, beside] if folder and folder != beside else [beside]
    listing = _Listing()
    paths = {name: path for name in names if (path := listing.first(name, roots))}
    exact, notes, taken = len(paths), [], set(map(os.path.abspath, paths.values()))
    if exact < len(names):
        wide = Path(os.path.commonpath([root.absolute() for root in roots]))
        if wide in (beside.absolute(), beside.absolute().parent):
            roots.append(wide)
        searched = [name for name in names if name not in only_exact]
        for root in roots:
            index = _Index(root, annotations, taken)
            index.match(searched, paths, index.by_name)
            if exact and len(paths) > exact:
                example = next(f"{name} is {path}" for path, name in index.matched.items())
                notes.append(f"{len(paths) - exact:,} images are not where their names say ({example})")
            by_name = len(paths)
            index.match(searched, paths, index.by_stem)
            if len(paths) > by_name:
                name, path = list(paths.items())[-1]
                count = len(paths) - by_name
                example = f"{name} is {path.name}"
                notes.append(f"{count:,} file names have another suffix than the file ({example})")
            if paths:
                break
    missing = tuple(name for name in names if name not in paths)
    return Located({name: paths[name] for name in names if name in paths}, missing, tuple(notes))


def unlisted_images(located: Iterable[Path]) -> list[str]:
    """Returns the names of image files that lie beside located ones without being among them."""
    used: dict[str, set[str]] = {}
    for path in located:
        folder, name = os.path.split(path)
        used.setdefault(folder, set()).add(name)
    folders: dict[str, set[str]] = {}  # by one spelling of each
    for folder, names in used.items():
        folders.setdefault(os.path.realpath(folder), set()).update(names)
    return [
        name for folder, names in folders.items() for name in sorted(os.listdir(folder))
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and name not in names and not is_leftover(name)
    ]  # fmt: skip


class _Listing:
    """Files by exact path, with one listing of each folder."""

    def __init__(self):
        self._files: dict[str, frozenset[str]] = {}

    def first(self, name: str, roots: list[Path]) -> Path | None:
        for root in roots:
            nested = "/" in name or os.sep in name
            folder, base = os.path.split(os.path.join(root, name)) if nested else (str(root), name)
            if base in self._list(folder):
                return root / name
        return None

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._files:
            try:
                with os.scandir(folder) as entries:
                    self._files[folder] = frozenset(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):  # ValueError: NUL or lone surrogates in the name
                self._files[folder] = frozenset()
        return self._files[folder]


class _Index:
    """The files below a folder that are not ``taken``, by the last component of their paths."""

    def __init__(self, root: Path, annotations: Path, taken: Set[str]):
        self._annotations = annotations
        self._files: dict[tuple[str, ...], list[_Entry]] = {}  # by the last component, and by the last two
        self._stems: dict[str, list[_Entry]] = {}
        self.matched: dict[Path, str] = {}
        for path in walk(root):
            if os.path.abspath(path) in taken:
                continue
            parts = tuple(map(_key, path.relative_to(root).parts))
            for key in {parts[-1:], parts[-2:]}:
                self._files.setdefault(key, []).append((parts, path))
            if path.suffix.lower() in IMAGE_SUFFIXES:
                self._stems.setdefault(_stem(parts[-1]), []).append((parts, path))

    def by_name(self, parts: tuple[str, ...]) -> list[_Entry]:
        """Returns the files of a name, those in a folder of the same name where there are any."""
        return self._files.get(parts[-2:]) or self._files.get(parts[-1:], [])

    def by_stem(self, parts: tuple[str, ...]) -> list[_Entry]:
        """Returns the image files of a name, whatever their suffixes."""
        return self._stems.get(_stem(parts[-1]), [])

    def match(
        self, names: Iterable[str], paths: dict[str, Path], look_up: Callable[[tuple[str, ...]], list[_Entry]]
    ) -> None:
        """Adds the files of names that are not among ``paths`` yet.

        Other suffixes are allowed for a suffix that no file has: one image that is missing among others is
        not to be replaced by its mask.
        """
        known = {os.path.splitext(name)[1].lower() for name in paths} if look_up == self.by_stem else set()
        for name in names:
            if name in paths or os.path.splitext(name)[1].lower() in known:
                continue
            for parts in _readings(name):
                if candidates := look_up(parts):
                    path = paths[name] = self._best(parts, candidates, name)
                    if path in self.matched:
                        both = f"{self.matched[path]!r} and {name!r}"
                        raise InputError(f"{self._annotations}: the images {both} fit the same file {path}")
                    self.matched[path] = name
                    break

    def _best(self, parts: tuple[str, ...], candidates: list[_Entry], name: str) -> Path:
        scores = [_agreement(parts[:-1], other[:-1]) for other, _ in candidates]
        highest = max(scores)
        best = [path for score, (_, path) in zip(scores, candidates, strict=True) if score == highest]
        if len(best) > 1:
            exact = [path for path in best if path.name == name.replace("\\", "/").split("/")[-1]]
            best = exact if len(exact) == 1 else best
        if len(best) > 1:
            shown = " and ".join(map(str, best[:2])) + (", ..." if len(best) > 2 else "")
            is_coco = self._annotations.suffix.lower() == ".json"
            advice = "; give the folder of its images with --train IMAGES ANNOTATIONS" if is_coco else ""
            raise InputError(f"{self._annotations}: the image {name!r} may be {shown}{advice}")
        return best[0]


def _readings(name: str) -> Iterator[tuple[str, ...]]:
    """Yields the components of a name, read as a path, then as an address with escapes."""
    texts = [name]
    if "://" in name or "?d=" in name:
        try:
            address = urlsplit(name)
            texts = [parse_qs(address.query).get("d", [address.path])[0]]
        except ValueError:
            pass
    texts.append(unquote(texts[0]))
    for text in dict.fromkeys(texts):
        components = text.replace("\\", "/").split("/")
        if parts := tuple(_key(part) for part in components if part not in ("", ".", "..")):
            yield parts


def _agreement(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Returns the number of equal components at the ends of two paths."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _key(component: str) -> str:
    return unicodedata.normalize("NFC", component).casefold()


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix}" in IMAGE_SUFFIXES else name
