"""Checkpoints of a run with Orbax: the training state, the position in the data, and the experiment."""

import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict

from mrcnn_jax import distributed
from mrcnn_jax.atomic_io import disk_error
from mrcnn_jax.config import Experiment
from mrcnn_jax.data.contents import Contents
from mrcnn_jax.errors import InputError, TrainingError, first_line
from mrcnn_jax.paths import require_place
from mrcnn_jax.run_description import Description, current_versions, parse_description
from mrcnn_jax.structures import DatasetInfo

BEST = "best"
"""Directory beside ``checkpoints`` of the best one (train.keep_best)."""
DAMAGED = "damaged_checkpoints"
"""Directory beside ``checkpoints`` to which unreadable checkpoints are moved."""


class CheckpointWriteError(TrainingError):
    """A checkpoint cannot be written."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not hold what was saved."""


def run_directory(directory: str | os.PathLike) -> epath.Path:
    """Returns a directory on disk or in a bucket; raises InputError for what ``require_place`` refuses."""
    require_place(directory, "the directory")
    return epath.Path(directory)


class Checkpoint(NamedTuple):
    """A checkpoint in host memory."""

    step: int
    experiment: Experiment
    info: DatasetInfo
    images_seen: int
    arrays: dict[str, np.ndarray]  # by path in the training state, "params.backbone.stem.kernel"
    path: epath.Path
    contents: dict[str, Contents] | None = None  # of the splits, by name; None for imported weights

    def restore_state(self, template: Any) -> Any:
        """Returns the arrays in the structure of ``template``; InputError if names or shapes differ."""
        expected = {name: tuple(leaf.shape) for name, leaf in _leaves_by_name(template).items()}
        saved = {name: array.shape for name, array in self.arrays.items()}
        names = saved.keys() | expected.keys()
        differing = sorted(name for name in names if saved.get(name) != expected.get(name))
        if differing:
            theirs, ours = (shapes.get(differing[0], "absent") for shapes in (saved, expected))
            raise InputError(
                f"checkpoint {self.path} is of another model: {len(differing)} arrays differ, the first is "
                f"{differing[0]}, {theirs} in the checkpoint and {ours} in the experiment"
            )
        return jax.tree.unflatten(jax.tree.structure(template), [self.arrays[name] for name in expected])

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and model state, for inference; independent of the optimizer."""
        parts = {name: array for name, array in self.arrays.items() if not name.startswith("opt_state")}
        parts = unflatten_dict({tuple(name.split(".")): array for name, array in parts.items()})
        return {"params": parts.get("averaged", parts["params"]), **parts.get("model_state", {})}


class CheckpointStore:
    """The checkpoints of one run, on disk or in a bucket. A checkpoint gets its name once it is complete.

    With several processes, every process calls every method and writes its part of the arrays to the shared
    directory.

    Args:
        directory: of the checkpoints; made if missing.
        keep: number of checkpoints to keep.
        read_only: leave the directory unchanged, as a run may be writing to it.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, read_only: bool = False):
        directory = epath.Path(directory)
        self.directory = directory if "://" in str(directory) else directory.absolute()
        self.read_only = read_only
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=not read_only)
        # given by name, as a manager that has not saved yet cannot know the items of a checkpoint
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @property
    def steps(self) -> Sequence[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, images_seen: int, experiment: Experiment, info: DatasetInfo,
        contents: dict[str, Contents] | None = None,
    ) -> None:  # fmt: skip
        """Writes a checkpoint in the background; a state that does not span processes may be donated at once.

        ``images_seen`` is the whole state of the data iterator: the seed determines the order of images.

        Raises:
            CheckpointWriteError: this checkpoint or the previous one cannot be written. Complete ones remain.
        """
        # copied, as on CPU the host's view of a donated buffer would change during the write
        spans = distributed.spans_processes
        state = jax.tree.map(lambda leaf: leaf if spans(leaf) else np.array(leaf), state)
        digests = {name: _digest(leaf) for name, leaf in _leaves_by_name(state).items()}
        about = Description(experiment, info, images_seen, digests, contents, current_versions()).to_json()
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        self._write(lambda: self._manager.save(step, args=args))

    def restore_latest(self, warn: Callable[[str], None] = lambda message: None) -> Checkpoint | None:
        """Restores the newest intact checkpoint that all processes can read; None if none was ever saved.

        Damaged checkpoints are reported to ``warn`` and, unless ``read_only``, moved to damaged_checkpoints.

        Raises:
            InputError: all checkpoints are damaged.
        """
        unreadable, found, views, agreed = {}, None, [], max(self.steps, default=-1)
        while not views or any(view["step"] != agreed for view in views):
            if found is None or found.step > agreed:
                found = self._newest_readable(agreed, unreadable)
            # processes must agree, though one may be able to read what another cannot
            own = {"step": found.step if found else -1, "damaged": unreadable}
            views = distributed.all_gather_object(own)
            agreed = min(view["step"] for view in views)
        damaged = {step: message for view in views for step, message in view["damaged"].items()}
        for message in damaged.values():
            warn(f"{message}; {f'using step {found.step:,}' if found else 'there is no earlier one'}")
        if damaged and not found:
            newest = damaged[max(damaged, key=int)]
            raise InputError(f"no checkpoint in {self.directory} can be read; the newest: {newest}")
        if damaged and not self.read_only:
            self._move_aside(damaged)
        return found

    def _newest_readable(self, last: int, damaged: dict[str, str]) -> Checkpoint | None:
        """Restores the newest intact checkpoint up to a step; adds to ``damaged`` those that are not."""
        for step in sorted((step for step in self.steps if step <= last), reverse=True):
            try:
                return self.restore(step)
            except DamagedCheckpointError as error:
                damaged[str(step)] = str(error)
        return None

    def restore(self, step: int) -> Checkpoint:
        """Restores a checkpoint and verifies its digests; raises DamagedCheckpointError where they differ."""
        path = self.directory / str(step)
        try:
            tree = self._manager.item_metadata(step)["state"].tree
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(template), about=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=args)
            about, arrays = restored["about"], _leaves_by_name(restored["state"])
            described = parse_description(about, "its description")
        except Exception as error:  # Orbax raises various types for missing or truncated files
            message = f"checkpoint {path} cannot be read ({_reason(error)})"
            raise DamagedCheckpointError(message) from error
        digests, found = described.digests, {name: _digest(array) for name, array in arrays.items()}
        differing = [name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name)]
        if differing:
            message = f"{len(differing)} arrays differ from what was saved, the first is {min(differing)}"
            raise DamagedCheckpointError(f"checkpoint {path} is damaged: {message}")
        return Checkpoint(
            step, described.experiment, described.dataset, described.images_seen, arrays, path,
            described.contents,
        )  # fmt: skip

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of a checkpoint's arrays by path, which are not read.

        Raises:
            DamagedCheckpointError: they cannot be read.
        """
        try:
            tree = self._manager.item_metadata(step)["state"].tree
            return {name: tuple(leaf.shape) for name, leaf in _leaves_by_name(tree).items()}
        except Exception as error:  # Orbax raises various types for missing or truncated files
            message = f"checkpoint {self.directory / str(step)} cannot be read ({_reason(error)})"
            raise DamagedCheckpointError(message) from error

    def wait(self) -> None:
        """Blocks until everything is on disk; raises CheckpointWriteError where it cannot be written."""
        self._write(self._manager.wait_until_finished)

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finishes the last checkpoint, unless writing failed or a process needed for it is lost."""
        if not isinstance(error, CheckpointWriteError | jax.errors.JaxRuntimeError):
            self.wait()
            self.close()

    def _write(self, write):
        try:
            write()
        except Exception as error:
            raise CheckpointWriteError(
                f"a checkpoint cannot be written to {self.directory} ({_reason(error)}): free space or "
                "fix the cause, then repeat the command; the run resumes from its last complete checkpoint"
            ) from error

    def _move_aside(self, steps):
        distributed.barrier()  # no process still reads them
        if distributed.is_primary():
            aside = self.directory.parent / DAMAGED
            if aside.exists() and not aside.is_dir():
                aside = _free_name(aside)
            aside.mkdir(parents=True, exist_ok=True)
            # an object store has no directories without files
            (aside / "README").write_text("Checkpoints that cannot be read or do not hold what was saved.\n")
            for step in steps:
                (self.directory / step).rename(_free_name(aside / step))
        distributed.barrier()
        self._manager.reload()


def _free_name(path):
    """Returns the path, or with a number after it if that name is taken."""
    names = (path, *(path.with_name(f"{path.name}_{number}") for number in range(2, 1000)))
    return next(name for name in names if not name.exists())


def _digest(leaf):
    return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))


def _reason(error):
    return disk_error(error) or first_line(error)[:300]


def _leaves_by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
