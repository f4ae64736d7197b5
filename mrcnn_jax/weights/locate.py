"""Turns a model argument into a directory: a path, a name of the catalogue, an address or hf://owner/name."""

import hashlib
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from mrcnn_jax.errors import InputError
from mrcnn_jax.paths import require_local, require_name, require_place
from mrcnn_jax.run_description import newest_description
from mrcnn_jax.weights import download, zoo

HUB = "hf://"
"""Prefix of models on the Hugging Face Hub, hf://owner/name or hf://owner/name@revision."""
_ADDRESS = r"https?://"


class WeightFile(NamedTuple):
    """A file of weights on this machine."""

    path: Path
    entry: zoo.Entry | None = None
    """Its entry in the catalogue, if it was downloaded."""


def locate(model: str | os.PathLike) -> str | os.PathLike:
    """Returns the directory of a model; published weights are downloaded and imported where they are not yet.

    Args:
        model: directory of a run, of imported weights or of a pushed model, which is returned as it is; name
            of published weights (``zoo.ENTRIES``), address of a file of weights, or hf://owner/name.

    Raises:
        InputError: there is no such name, or the weights cannot be loaded or imported.
    """
    text = os.fspath(model)
    _require_model(model)
    if text.startswith(HUB):
        from mrcnn_jax.weights import hub  # here, as hub imports the detector, which imports this module

        return hub.load_snapshot(text)
    entry = _entry(text)
    return model if entry is None else _import_once(text, entry)


def cached(model: str | os.PathLike) -> Path | None:
    """Returns the directory of published weights that were imported before; None for anything else."""
    text = os.fspath(model)
    entry = _own_entry(text) if re.match(_ADDRESS, text) else zoo.ENTRIES.get(text)
    directory = entry and download.cache_directory() / "weights" / entry.name
    return directory if directory and newest_description(directory) else None


def is_local(model: str | os.PathLike) -> bool:
    """Returns whether a model argument is a path, also one in a bucket.

    Raises:
        InputError: it is empty, or an address of another kind.
    """
    text = os.fspath(model)
    _require_model(model)
    return not re.match(f"{HUB}|{_ADDRESS}", text) and (Path(text).exists() or text not in zoo.ENTRIES)


def _require_model(model: str | os.PathLike) -> None:
    """Raises InputError for an empty name, or an address from which no model is read."""
    require_name(model, "the model")
    if not re.match(f"{HUB}|{_ADDRESS}", os.fspath(model)):
        require_place(model, "the model", "gs://..., https://... or hf://owner/name")


def short_name(model: str | os.PathLike) -> str:
    """Returns the last part of a model's name, which names what is made of the model."""
    text = os.fspath(model)
    if text.startswith(HUB):
        return text.partition("@")[0].rpartition("/")[2]
    return _own_entry(text).short_name if re.match(_ADDRESS, text) else Path(text).absolute().name


def find_file(file: str | os.PathLike) -> WeightFile:
    """Returns a file of weights, which is downloaded if it is a name of the catalogue or an address."""
    text = os.fspath(file)
    entry = _entry(text)
    if entry is None:
        require_local(file, "the file of weights", "https://...")
        return WeightFile(Path(file))
    path = download.cache_directory() / "downloads" / entry.name / urlsplit(entry.url).path.rpartition("/")[2]
    if not path.is_file():
        with download.exclusive(path.parent / ".lock"):
            url = entry.url if entry.inferred else download.mirrored(entry.url)
            download.download(url, path, entry.checksum)
    return WeightFile(path, entry)


def _entry(text: str) -> zoo.Entry | None:
    """Returns the entry of a name or of an address; None for a path, which precedes a name."""
    if re.match(_ADDRESS, text):
        return _own_entry(text)
    if Path(text).exists():
        if text in zoo.ENTRIES:
            _say_path_precedes(text)
        return None
    if text not in zoo.ENTRIES:
        _refuse_misspelt(text)
    return zoo.ENTRIES.get(text)


@cache
def _say_path_precedes(text: str) -> None:
    note = f"Note: {text} is a path here, and a name of published weights: the path is used"
    print(note, file=sys.stderr)


def _own_entry(url: str) -> zoo.Entry:
    """Returns the entry of an address: the file's name and a digest of the address name it in the cache.

    Raises:
        InputError: the address cannot be parsed.
    """
    try:
        path = Path(urlsplit(url).path)
    except ValueError as error:
        raise InputError(f"{url} is not an address: {error}") from error
    stem = re.sub(r"[^\w.-]", "_", path.stem) or "weights"
    name = f"url/{stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    return zoo.Entry(name, url, (), None, trained_on="", inferred=True)


def _refuse_misspelt(text: str) -> None:
    """Raises InputError for what looks like a name of the catalogue, but is none."""
    tails = {name.rpartition("/")[2].lower() for name in zoo.ENTRIES}
    if text.partition("/")[0] in zoo.LICENCES or text.lower() in tails:
        close = zoo.nearest(text)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InputError(f"there are no published weights {text!r}: {hint}`mrcnn zoo` lists the names")


def _import_once(text: str, entry: zoo.Entry) -> Path:
    """Returns the directory of imported weights in the cache."""
    out = download.cache_directory() / "weights" / entry.name
    if newest_description(out):  # None, too, for what an older version has imported
        return out
    from mrcnn_jax.weights.import_export import import_weights  # here: it imports the detector

    with download.exclusive(out.with_name(f".{out.name}.lock")):
        if newest_description(out):
            return out
        partial = out.with_name(f".{out.name}.part")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            import_weights(text, partial)
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
        except InputError:
            if entry.inferred:  # the address may hold something better tomorrow
                shutil.rmtree(download.cache_directory() / "downloads" / entry.name, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return out
