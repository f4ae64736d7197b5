"""Claim of a run directory: it is checked before anything is written, and belongs to one run at a time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from etils import epath

from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import require_writable
from mrcnn_jax.data.dataset import is_prepared
from mrcnn_jax.directory_lock import locked
from mrcnn_jax.errors import InputError

_OWN = frozenset(
    "checkpoints best damaged_checkpoints experiment.json history.jsonl history.damaged.jsonl metrics.csv "
    "curves.png tensorboard wandb loggers.json metrics.json predictions.png predictions.jpg "
    "evaluation".split()
)
"""Names of what a run and its evaluation write."""
_LOGS = frozenset([".log", ".txt", ".out", ".err"])
"""Suffixes of the output of a run, which shells and schedulers write into its directory."""


def require_run_directory(directory: epath.Path) -> None:
    """Checks, for all processes, that a run may begin or continue in a directory; writes nothing.

    Raises:
        InputError: it is something else, or would lose results.
    """
    by_primary(lambda: "://" in str(directory) or _check(Path(directory)), directory)


@contextmanager
def claimed_directory(directory: epath.Path) -> Iterator[None]:
    """Makes the directory of a run and holds its lock (``locked``).

    The primary process holds it for all processes of the run.

    Raises:
        InputError: another run is using the directory, it is something else, or it cannot be written.
    """
    require_run_directory(directory)
    with ExitStack() as lock:
        by_primary(lambda: lock.enter_context(locked(directory, "is training there")), directory)
        yield


def by_primary(act: Callable[[], object], directory: epath.Path) -> None:
    """Acts in the primary process; all processes raise the InputError that it meets."""
    problem = ""
    if distributed.is_primary():
        try:
            act()
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{directory} cannot be written ({error.strerror}): choose another --directory"
    if problem := distributed.all_gather_object(problem)[0]:
        raise InputError(problem)


def _check(directory: Path) -> None:
    """Raises InputError if a run in the directory would mix with, or replace, something else."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: choose another --directory")
    if is_prepared(directory):
        raise InputError(f"{directory} is a data set: choose another --directory")
    results = [name for name in ("metrics.json", "predictions.png") if (directory / name).exists()]
    checkpoints = directory / "checkpoints"
    saved = checkpoints.is_dir() and any(path.name.isdecimal() for path in checkpoints.iterdir())
    if results and not saved:
        raise InputError(
            f"{directory} holds {' and '.join(results)} but no checkpoints, and a run would replace them: "
            "choose another --directory, or move them away"
        )
    begun = checkpoints.is_dir() and (directory / "experiment.json").exists()
    if not (saved or begun) and directory.exists() and (others := _others(directory)):
        raise InputError(
            f"{directory} holds {others[0]} and no run, with which a run would mix: choose another "
            "--directory, or an empty one"
        )
    try:
        require_writable(str(directory))
    except InputError as error:
        raise InputError(f"{directory} cannot be written ({error}): choose another --directory") from None


def _others(directory: Path) -> list[str]:
    """Returns the names of what neither a run nor a redirection of its output leaves in a directory."""
    found = (path for path in directory.iterdir() if path.name not in _OWN and path.suffix not in _LOGS)
    return sorted(path.name for path in found if not path.name.startswith("."))
