"""Places that users name: local files and folders, and addresses, distinguished before any work."""

import os
import re
import stat
from os import PathLike
from pathlib import Path

from mrcnn_jax.errors import InputError

BUCKETS = ("gs",)
"""Schemes of buckets, in which runs may lie."""
_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}"  # pathlib makes one slash of two; C:/ is a drive


def scheme_of(place: str | PathLike) -> str | None:
    """Returns the scheme of an address, such as "s3", or None for a local path.

    ``Path`` shortens an address to s3:/..., which is recognised too.
    """
    found = re.match(_SCHEME, os.fspath(place))
    return found[1].lower() if found and not os.path.lexists(place) else None


def require_name(place: str | PathLike, what: str) -> None:
    """Raises InputError if a name is empty, or holds a NUL character."""
    if not os.fspath(place):
        raise InputError(f"{what} has an empty name: leave it out, or name a place")
    if "\0" in os.fspath(place):
        raise InputError(f"{what} has a name with a NUL character, which no file has")


def require_local(place: str | PathLike, what: str, others: str = "") -> None:
    """Checks that a place is named, and is on this machine.

    Args:
        place: path or address.
        what: what is read or written there, such as "the data set".
        others: the addresses that are taken besides, for the message.

    Raises:
        InputError: the name is empty, or an address.
    """
    require_name(place, what)
    if scheme := scheme_of(place):
        given = place if isinstance(place, str) else re.sub(_SCHEME, f"{scheme}://", os.fspath(place))
        allowed = f"a path on this machine{others and ', or '}{others}"
        raise InputError(f"{what} {given} is an address: it must be {allowed}")


def require_place(place: str | PathLike, what: str, others: str = "gs://...") -> None:
    """Checks that a place is a local path, or in a bucket that the installed packages reach.

    A ``pathlib.Path`` is never in a bucket.

    Raises:
        InputError: the name is empty, or another address, or a package is missing.
    """
    if isinstance(place, Path):
        require_local(place, what)
    elif scheme_of(place) in BUCKETS and "://" in os.fspath(place):
        _require_package(place)
    else:
        require_local(place, what, others)


def _require_package(bucket: str | PathLike) -> None:
    from etils import epath  # here, so that a bare accelerator machine can do without

    try:
        epath.Path(bucket).exists()
    except ImportError as error:
        package = 'pip install "mrcnn_jax[gcs]"'
        raise InputError(f"{bucket} is in a bucket, which needs a package: {package} ({error})") from error


def read_bytes(path: str | PathLike) -> bytes:
    """Returns the content of a file, on disk or in a bucket.

    Raises:
        OSError: it cannot be read, or is a pipe or device, which may have no end.
    """
    if "://" in os.fspath(path):
        from etils import epath

        return epath.Path(path).read_bytes()
    path = Path(path)
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # reading a folder raises the error for it
        raise OSError(0, "it is a pipe or a device, not a file", str(path))
    return path.read_bytes()
