"""Parser of COCO annotation files, with diagnostics for other files."""

import json
import os
from pathlib import Path
from typing import Any

from mrcnn_jax.data.formats.listing import Listing
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.paths import read_bytes

_LISTS = ("images", "annotations", "categories")
_KINDS = {
    b"\x1f\x8b": "it is compressed by gzip: unpack it",
    b"PK": "it is a ZIP archive: unpack it",
    b"version https://git-lfs": "it is a pointer of Git LFS: fetch the file itself with `git lfs pull`",
    b"<": "it is a web page or XML",
}  # fmt: skip
"""Other files that are found in place of annotations, by their first bytes."""


def load(path: Path) -> Listing:
    """Reads an annotation file in COCO format.

    Raises:
        InputError: the file cannot be read, is not JSON, or lacks one of the lists.
    """
    content = load_json(path)
    return Listing(path, *_lists(path, content), _warn_of_pages(content), [])


def load_json(path: str | os.PathLike, kind: str = "COCO") -> Any:
    """Reads a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    try:
        data = read_bytes(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return json.loads(data)
    except RecursionError:
        raise InputError(f"{path} is not valid JSON of a {kind} file: it is nested too deeply") from None
    except UnicodeDecodeError as error:
        reason = _kind(data) or f"byte {error.start} is no text in UTF-8: save it in that encoding"
        raise InputError(f"{path} is not valid JSON: {reason}") from None
    except ValueError as error:  # also a whole number of more digits than Python reads
        raise InputError(f"{path} is not valid JSON: {_kind(data) or _explain(error)}") from None


def _kind(data: bytes) -> str | None:
    kinds = (kind for start, kind in _KINDS.items() if data.lstrip().startswith(start))
    return next(kinds, None if data.strip() else "it is empty")


def _explain(error: ValueError) -> str:
    """Returns what is wrong with the text, and the likely reason."""
    if not isinstance(error, json.JSONDecodeError):
        return printable(error)
    if error.msg == "Extra data":
        where = f"from line {error.lineno}, column {error.colno} on, it holds more than one value"
        return f"{where}, as files do that were joined or have one object a line"
    short = error.pos >= len(error.doc.rstrip()) - 1 or error.msg.startswith("Unterminated string")
    return printable(error) + ("; it may have been cut short" if short else "")


def _lists(path: Path, content: Any) -> list[list]:
    needed = "a COCO file is an object with the lists images, annotations and categories"
    if isinstance(content, dict) and "annotations" in content and content["annotations"] is None:
        content["annotations"] = []
    for key in _LISTS:
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            given = "; this one is a list, as the results of a detector are" if type(content) is list else ""
            raise InputError(f"{path} has no list '{key}': {needed}{given}")
        if not found and key != "annotations":
            kind = {"images": "image", "categories": "category"}[key]
            raise InputError(f"{path}: it lists no {kind}, but needs at least one")
    return [content[key] for key in _LISTS]


def _warn_of_pages(content: dict[str, Any]) -> list[str]:
    """Returns a warning if the file seems to be the first page of what a server has."""
    listed = max(len(content["images"]), len(content["annotations"]))
    pages = {key: content.get(key) for key in ("next", "next_page", "nextPage")}
    totals = {key: content.get(key) for key in ("total", "count", "total_count", "totalCount")}
    found = {key: value for key, value in pages.items() if value}
    found |= {key: value for key, value in totals.items() if type(value) is int and value > listed}
    if not found:
        return []
    key, value = next(iter(found.items()))
    given = f'"{key}" is {printable(repr(value))[:80]}, but {listed:,} entries are listed'
    return [f"the annotation file may be one page of several ({given}): fetch the others, too"]
