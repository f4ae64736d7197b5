"""Downloads files once: with a progress bar, resumed after a cut, checked, and shared by processes."""

import fcntl
import hashlib
import http.client
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mrcnn_jax.atomic_io import require_writable, write_text
from mrcnn_jax.errors import InputError, printable

CACHE = "MRCNN_JAX_CACHE"
"""Environment variable: directory of downloads and imported weights."""
MIRROR = "MRCNN_JAX_ZOO_MIRROR"
"""Environment variable: address that replaces the hosts of published weights, https:// or file://."""
DEFAULT_CACHE = "~/.cache/mrcnn_jax"
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
ATTEMPTS = 3
"""Connections in a row that may be lost without a byte more."""
_BLOCK = 1 << 20


def cache_directory() -> Path:
    """Returns the directory of downloads and imported weights."""
    return Path(os.environ.get(CACHE) or DEFAULT_CACHE).expanduser()


def mirrored(url: str) -> str:
    """Returns the address of published weights on the mirror, if there is one: its path stays."""
    mirror = os.environ.get(MIRROR)
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


@contextmanager
def exclusive(file: Path) -> Iterator[None]:
    """Waits until no other process holds the lock of a file, and holds it; the system releases it on a kill.

    There is no lock on file systems without ``flock``.
    """
    require_cache(file.parent)
    with file.open("a") as stream:
        with suppress(OSError):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another process that loads the same weights", file=sys.stderr, flush=True)
                fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def require_cache(directory: Path) -> None:
    """Makes a directory of the cache; InputError if nothing can be written there."""
    try:
        require_writable(directory)
        directory.mkdir(parents=True, exist_ok=True)
    except (InputError, OSError) as error:
        advice = f"set {CACHE} to a directory that can be"
        raise InputError(f"the cache of weights {directory} cannot be written: {advice}") from error


def download(url: str, file: Path, checksum: tuple[str, str] | None = None) -> Path:
    """Downloads a file, unless it is there; a download that was cut continues.

    What has arrived of it is kept as FILE.part. The SHA-256 of the complete file is recorded in FILE.sha256,
    and a file that is downloaded again must have the same.

    Args:
        url: http://, https:// or file://.
        file: that is written, in a directory that exists.
        checksum: algorithm and first hexadecimal digits, if they are known.

    Raises:
        InputError: the server has no such file, cannot be reached or sends something else; the disk is full;
            the checksum differs.
    """
    if not file.is_file():
        part = file.with_name(f"{file.name}.part")
        _receive_all(url, part, checksum is not None)
        _check(url, part, file, checksum)
        part.replace(file)
    return file


def _receive_all(url: str, part: Path, is_checked: bool) -> None:
    """Receives the whole file, connection by connection."""
    in_vain = 0
    with _progress(url.rpartition("/")[2]) as report:
        while in_vain < ATTEMPTS:
            before = _size(part)
            try:
                if _receive(url, part, is_checked, report):
                    return
                reason = "the connection was cut"
            except HTTPError as error:
                if error.code == 416 and before:  # nothing follows what is there
                    if error.headers.get("Content-Range") == f"bytes */{before}":
                        return
                    part.unlink()
                    continue
                hint = "there is no such file" if error.code in (404, 410) else error.reason
                raise InputError(f"{url} cannot be loaded: {hint} (HTTP {error.code})") from None
            except URLError as error:  # before the first byte: no server, no network, no such host
                reason = getattr(error.reason, "strerror", None) or error.reason
                raise InputError(f"{url} cannot be loaded: {printable(reason)}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            in_vain = 0 if _size(part) > before else in_vain + 1
    kept = f"; {_size(part) / 1e6:,.1f} MB have arrived, and the same call continues" if _size(part) else ""
    raise InputError(f"{url} cannot be loaded: {printable(reason)}{kept}")


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """Turns failures to write into an InputError; a full disk gets its space back."""
    try:
        yield
    except OSError as error:
        part.unlink(missing_ok=True)
        advice = f"{CACHE} names another place"
        raise InputError(f"{part} cannot be written: {error.strerror}; {advice}") from error


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _receive(url: str, part: Path, is_checked: bool, report: Callable[[int, int | None], None]) -> bool:
    """Receives over one connection; returns whether the file is complete.

    A part is continued if a checksum or the server's validator indicates that the file is still the same.
    """
    validator = part.with_name(f"{part.name}.validator")
    start, known = _size(part), validator.read_text() if validator.exists() else ""
    headers = {"User-Agent": "mrcnn_jax", "Accept-Encoding": "identity"}
    if start and (known or is_checked):
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": known} if known else {})
    with urlopen(Request(_encoded(url), headers=headers), timeout=TIMEOUT) as response:
        if response.headers.get_content_type() == "text/html":
            page = "a web page came instead of the file, perhaps that of a proxy or a login"
            raise InputError(f"{url} cannot be loaded: {page}")
        start = start if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        if total and shutil.disk_usage(part.parent).free < total - start:
            size = f"{total / 1e6:,.0f} MB"
            raise InputError(f"{part.parent} has no room for {size}: {CACHE} names another place")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        with _writing(part):
            validator.write_text("" if tag.startswith("W/") else tag)
            stream = part.open("ab" if start else "wb", buffering=0)
        with stream:
            while block := response.read(_BLOCK):
                with _writing(part):
                    start += stream.write(block)
                report(start, total)
    return total is None or start == total


def _encoded(url: str) -> str:
    """Returns an address whose spaces and umlauts are encoded, as browsers do; what is encoded stays."""
    parts = urlsplit(url)
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~?") for part in (parts.path, parts.query))
    return parts._replace(path=path, query=query).geturl()


def _check(url: str, part: Path, file: Path, checksum: tuple[str, str] | None) -> None:
    """Compares the checksum with the known one, and with that of an earlier download of the file."""
    record, sha256 = file.with_name(f"{file.name}.sha256"), _digest(part, "sha256")
    expected = [("sha256", record.read_text().strip())] if record.exists() else []
    for algorithm, digits in [*expected, *([checksum] if checksum else [])]:
        digest = sha256 if algorithm == "sha256" else _digest(part, algorithm)
        if not digest.startswith(digits):
            part.unlink()
            differing = f"its {algorithm} starts with {digest[:8]}, not with {digits[:8]}"
            raise InputError(f"{url} is not the file that was published: {differing}")
    with _writing(part):
        write_text(record, f"{sha256}\n")
    part.with_name(f"{part.name}.validator").unlink(missing_ok=True)


def _digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function that shows the received and all bytes on stderr; outside terminals a line does."""
    console = Console(stderr=True)
    columns = BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    bar = Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal
    )
    task, is_announced = bar.add_task(name, total=None), False

    def report(done: int, total: int | None) -> None:
        nonlocal is_announced
        bar.start()
        bar.update(task, completed=done, total=total)
        if not console.is_terminal and not is_announced:
            is_announced = True
            size = f" ({total / 1e6:,.1f} MB)" if total else ""
            print(f"loading {name}{size}", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
