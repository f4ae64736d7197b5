"""Locks of directories, each of which one process at a time writes to."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mrcnn_jax.errors import InputError


@contextmanager
def locked(directory: str | os.PathLike, use: str) -> Iterator[None]:
    """Makes a directory and holds its lock, which the system releases however the process ends.

    Directories that are made and are empty in the end are removed. There is no lock in buckets, and on file
    systems without ``flock``.

    Args:
        directory: perhaps in a bucket.
        use: what this process does there, for the message to others, such as "is training there".

    Raises:
        InputError: another process holds the lock.
        OSError: the directory cannot be written.
    """
    if "://" in str(directory):
        yield
        return
    directory = Path(directory)
    made = [place for place in (directory, *directory.parents) if not place.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    lock = None
    try:
        lock = _lock(directory / ".lock", use)
        yield
    finally:
        if lock is not None:
            (directory / ".lock").unlink(missing_ok=True)
            os.close(lock)
        with suppress(OSError):  # not empty
            for place in made:
                place.rmdir()


def is_abandoned(directory: Path) -> bool:
    """Returns whether the process that held the lock of a directory was killed; False if that is unknown."""
    try:
        descriptor = os.open(directory / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    finally:
        os.close(descriptor)
    return True


def _lock(file: Path, use: str) -> int | None:
    """Returns a descriptor that holds the lock; None on file systems without locks."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):  # else its owner has just deleted it
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise InputError(f"{file.parent} is in use by {owner}: wait for it or stop it") from None
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, which {use}\n".encode())
    return descriptor
