"""Description of a YOLO data set, ``data.yaml``: the images of each split, the classes and the keypoints."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mrcnn_jax.data.coco_keypoints import PERSON_FLIP, PERSON_KEYPOINTS, PERSON_SKELETON, flip_indices
from mrcnn_jax.data.formats.coco_numbers import to_whole
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.paths import read_bytes

_KEYS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
KEYS = "train", "val", "path", "names", "nc"
"""Keys of which a description has at least one."""
_LARGEST = 10_000_000  # bytes of a description


class Description(NamedTuple):
    """Content of a description."""

    path: Path
    places: dict[str, list[Path]]  # folders and lists of images of each split
    names: dict[int, str]  # classes by number
    keypoints: tuple[str, ...]
    skeleton: list[list[int]]  # counted from 1
    dimensions: int  # numbers of a keypoint: 2 or 3; 0 without keypoints
    notes: list[str]


def find_description(files: dict[str, list[Path]]) -> Path | None:
    """Returns the description among the files of a folder, the one nearest to its root."""
    named = [path for path in named_descriptions(files) if not _is_other(path)]
    found = named or [path for path in _yaml_files(files) if _is_description(path)]
    return min(found, key=lambda path: (len(path.parts), path), default=None)


def named_descriptions(files: dict[str, list[Path]]) -> list[Path]:
    """Returns the files that are named like a description, whatever they hold."""
    return [path for path in _yaml_files(files) if path.stem.lower() in ("data", "dataset")]


def _yaml_files(files: dict[str, list[Path]]) -> list[Path]:
    return [*files.get(".yaml", []), *files.get(".yml", [])]


def _is_description(path: Path) -> bool:
    try:
        content = _load(path)
    except InputError:
        return False
    return isinstance(content, dict) and "names" in content and bool(content.keys() & {"train", "val"})


def _is_other(path: Path) -> bool:
    """Returns whether a file is good YAML about something else."""
    try:
        content = _load(path)
    except InputError:
        return False
    return isinstance(content, dict) and content.keys().isdisjoint(KEYS)


def _load(path: Path) -> Any:
    """Reads YAML with texts alone: names such as yes, no and 1e3 stay as they are written."""
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST:,} bytes")
        return yaml.load(read_bytes(path).decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # PyYAML does not document what it raises for damaged files
        reason = " ".join(printable(str(error)).split())[:200]
        raise InputError(f"{path} is not valid YAML: {reason}") from None


def read_description(path: Path) -> Description:
    """Reads a description.

    Raises:
        InputError: it is not valid YAML, or names no images for training.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no description of a YOLO data set, which has the keys train and names")
    notes: list[str] = []
    places = {}
    for split, keys in _KEYS.items():
        given = next((content[key] for key in keys if content.get(key)), [])
        texts = [text for text in (given if isinstance(given, list) else [given]) if isinstance(text, str)]
        found = [place for text in texts if (place := _locate(path, content.get("path"), text))]
        if len(found) < len(texts):
            missing = next(text for text in texts if not _locate(path, content.get("path"), text))
            sentence = f"{path}: the images of {split} are not there ({missing})"
            if split == "train":
                raise InputError(f"{sentence}: correct `path` or `{keys[0]}` in it")
            notes.append(f"{sentence}, so that they are left out")
        if found:
            places[split] = found
    if "train" not in places:
        raise InputError(f"{path} names no images for training: it needs the key train")
    names = _read_names(content, notes)
    keypoints, dimensions, skeleton = _read_keypoints(path, content)
    return Description(path, places, names, keypoints, skeleton, dimensions, notes)


def _locate(path: Path, root: Any, text: str) -> Path | None:
    """Returns the folder or list of a split: relative to ``path``, the description, or on another machine."""
    text = text.strip().replace("\\", "/")
    roots = [path.parent]
    if isinstance(root, str) and root.strip():
        roots.insert(0, path.parent / root.strip().replace("\\", "/"))
    stripped = text
    while stripped.startswith("../"):  # as Roboflow writes them
        stripped = stripped[3:]
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    tails = ["/".join(parts[start:]) for start in range(1, len(parts))]
    candidates = [place / text for place in roots] + [place / stripped for place in roots]
    candidates += [path.parent / tail for tail in tails]
    return next((candidate for candidate in candidates if os.path.exists(candidate)), None)


def _read_names(content: dict[str, Any], notes: list[str]) -> dict[int, str]:
    names = content.get("names")
    if isinstance(names, dict):
        found = {number: name for key, name in names.items() if (number := to_whole(key)) is not None}
    else:
        found = dict(enumerate(names if isinstance(names, list) else []))
    count = to_whole(content.get("nc"))
    if count is not None and found and count != len(found):
        notes.append(f"nc is {count}, but {len(found)} classes are named: the names count")
    if not found:
        found = dict.fromkeys(range(min(count or 0, 10_000)), "")
    return {number: name if isinstance(name, str) else "" for number, name in found.items()}


def _read_keypoints(path: Path, content: dict[str, Any]) -> tuple[tuple[str, ...], int, list[list[int]]]:
    """Returns the names of keypoints, whose sides say what ``flip_idx`` says, dimensions and skeleton."""
    shape = content.get("kpt_shape")
    if not shape:
        return (), 0, []
    sizes = [to_whole(size) for size in shape] if isinstance(shape, list) else []
    if len(sizes) != 2 or not sizes[0] or not 0 < sizes[0] <= 1000 or sizes[1] not in (2, 3):
        raise InputError(f"{path}: kpt_shape is {shape}, but must be the number of keypoints and 2 or 3")
    count, dimensions = sizes
    flip = content.get("flip_idx")
    flip = [to_whole(index) for index in flip] if isinstance(flip, list) else []
    if flip and sorted(index if index is not None else -1 for index in flip) != list(range(count)):
        raise InputError(f"{path}: flip_idx must be an order of the keypoints 0 to {count - 1}")
    names = content.get("kpt_names")
    names = next(iter(names.values()), []) if isinstance(names, dict) else names
    given = tuple(map(str, names)) if isinstance(names, list) and len(names) == count else ()
    if given and (not flip or list(flip_indices(given)) == flip):
        return given, dimensions, []
    if not given and flip == list(PERSON_FLIP):
        return PERSON_KEYPOINTS, dimensions, [[a + 1, b + 1] for a, b in PERSON_SKELETON]
    return tuple(_name_by_sides(flip or list(range(count)))), dimensions, []


def _name_by_sides(flip: list[int]) -> Iterator[str]:
    """Yields names of keypoints that trade places as they are to when an image is mirrored."""
    for i, other in enumerate(flip):
        side = "" if i == other else "left " if i < other else "right "
        yield f"{side}keypoint {min(i, other) + 1}"
