"""Claim of a run directory: it is checked before anything is written, and belongs to one run at a time."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from mrcnn_jax import distributed
from mrcnn_jax.data.dataset import is_prepared
from mrcnn_jax.errors import InputError


@contextmanager
def claimed_directory(directory: epath.Path) -> Iterator[None]:
    """Makes the directory of a run and holds its lock, which the system releases however a process ends.

    The primary process holds it for all processes of the run. There is no lock in buckets, and on file
    systems and platforms without ``flock``.

    Raises:
        InputError: another run is using the directory, it is something else, or it cannot be written.
    """
    lock, problem = None, ""
    if distributed.is_primary() and "://" not in str(directory):
        try:
            _check(Path(directory))
            Path(directory).mkdir(parents=True, exist_ok=True)
            lock = _lock(Path(directory) / ".lock")
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{directory} cannot be written ({error.strerror}): choose another --directory"
    if problem := distributed.all_gather_object(problem)[0]:
        raise InputError(problem)
    try:
        yield
    finally:
        if lock is not None:
            (Path(directory) / ".lock").unlink(missing_ok=True)
            os.close(lock)


def _check(directory: Path) -> None:
    """Raises InputError if a run in the directory would mix with, or replace, something else."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: choose another --directory")
    if is_prepared(directory):
        raise InputError(f"{directory} is a data set: choose another --directory")
    results = [name for name in ("metrics.json", "predictions.png") if (directory / name).exists()]
    if results and not (directory / "checkpoints").is_dir():
        raise InputError(
            f"{directory} holds {' and '.join(results)} but no checkpoints, and a run would replace them: "
            "choose another --directory, or move them away"
        )


def _lock(file: Path) -> int | None:
    """Returns a descriptor that holds the lock; None on file systems and platforms without locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
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
            message = f"{file.parent} is in use by {owner}, which is training there: wait for it or stop it"
            raise InputError(message) from None
        except OSError:
            os.close(descriptor)
            return None
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor
