"""Checkpoints of a run with Orbax: the training state, the position in the data, and the experiment that both belong to."""

import os
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict

from mrcnn_jax import distributed
from mrcnn_jax.config import Experiment, from_dict, to_dict
from mrcnn_jax.errors import InputError, TrainingError
from mrcnn_jax.structures import DatasetInfo

DAMAGED = "damaged_checkpoints"
"""Beside the checkpoints: where those go that cannot be read."""


def run_directory(directory: str | os.PathLike) -> epath.Path:
    """A directory on disk or in a bucket; InputError where buckets cannot be reached."""
    place = epath.Path(directory)
    try:
        place.exists()
    except ImportError as error:
        raise InputError(f'{directory} is in a bucket, which needs one more package: pip install -e ".[gcs]" ({error})') from error
    return place


class Saved(NamedTuple):
    """A checkpoint in memory, every array as it was saved."""

    step: int
    experiment: Experiment
    info: DatasetInfo
    images_seen: int
    arrays: dict[str, np.ndarray]  # by their place in the state, "params.backbone.stem.kernel"
    origin: epath.Path

    def state(self, template: Any) -> Any:
        """The arrays in the template's structure. InputError, naming arrays, where they are of another model."""
        wanted = {name: tuple(leaf.shape) for name, leaf in _named(template).items()}
        saved = {name: array.shape for name, array in self.arrays.items()}
        differing = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"checkpoint {self.origin} is of another model: {len(differing)} arrays differ, the first is {name}, "
                f"{saved.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the experiment"
            )
        return jax.tree.unflatten(jax.tree.structure(template), [self.arrays[name] for name in wanted])

    @property
    def variables(self) -> dict[str, Any]:
        """Parameters and model state alone, for inference, whatever the optimiser was."""
        parts = unflatten_dict({tuple(name.split(".")): array for name, array in self.arrays.items() if not name.startswith("opt_state")})
        return {"params": parts["params"], **parts.get("model_state", {})}


class Checkpoints:
    """The checkpoints of one run directory, on disk or at a gs:// address. A checkpoint appears under its name only when it is complete.

    With several processes, each calls every method; each writes its part of the arrays, and all see the same directory.

    ``read_only``: leave the directory as it is; a run may be writing to it.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, read_only: bool = False):
        directory = epath.Path(directory)
        self.directory, self.read_only = directory if "://" in str(directory) else directory.absolute(), read_only
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=not read_only)
        # named here, for a manager that has not written anything yet could not tell what a checkpoint holds
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @property
    def steps(self) -> Sequence[int]:
        """Of the complete checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, images_seen: int, experiment: Experiment, info: DatasetInfo) -> None:
        """Writes in the background; the state may be donated to the next step at once, unless it is spread over several processes.

        ``images_seen`` is all there is to the data iterator: the order of images is a function of the seed (data.pipeline).

        Raises:
            CheckpointFailed: this checkpoint, or the one before, cannot be written. Those that were complete stay as they are.
        """
        # a copy of its own: on CPU the host's view of a donated buffer would change under the writer's hands
        state = jax.tree.map(lambda leaf: leaf if distributed.spans_processes(leaf) else np.array(leaf), state)
        about = {
            "experiment": to_dict(experiment), "dataset": info._asdict(), "images_seen": images_seen,
            "digests": {name: _digest(leaf) for name, leaf in _named(state).items()},
        }  # fmt: skip
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        self._writing(lambda: self._manager.save(step, args=args))

    def newest(self, warn: Callable[[str], None] = lambda message: None) -> Saved | None:
        """The newest checkpoint that is as it was saved; None where there never was one.

        One that cannot be read, or whose arrays are not what was written, is told to ``warn`` and moved to ``damaged_checkpoints`` beside the others,
        unless ``read_only``.

        Raises:
            InputError: there are checkpoints, but all are damaged.
        """
        damaged, found = {}, None
        for step in reversed(self.steps):
            try:
                found = self.read(step)
                break
            except DamagedCheckpointError as error:
                damaged[str(step)] = str(error)
        # all processes go on from the same step, and know of the same damage, though one may read what another cannot
        views = distributed.all_gather_object({"step": found.step if found else -1, "damaged": damaged})
        damaged = {step: message for view in views for step, message in view["damaged"].items()}
        agreed = min(view["step"] for view in views)
        if found and found.step != agreed:
            found = self.read(agreed) if agreed >= 0 else None
        for message in damaged.values():
            warn(f"{message}; {f'step {found.step:,} is used' if found else 'there is none before it'}")
        if damaged and not found:
            raise InputError(f"no checkpoint in {self.directory} can be read; the newest: {damaged[max(damaged, key=int)]}")
        if damaged and not self.read_only:
            self._set_aside(damaged)
        return found

    def read(self, step: int) -> Saved:
        """A checkpoint, whose arrays are compared with the digests that were saved with them. DamagedCheckpoint where it is not whole."""
        place = self.directory / str(step)
        try:
            tree = self._manager.item_metadata(step)["state"].tree
            template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(template), about=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=args)
            about, arrays = restored["about"], _named(restored["state"])
            experiment, dataset, images_seen, digests = (about[name] for name in ("experiment", "dataset", "images_seen", "digests"))
        except Exception as error:  # whatever part of Orbax stumbles over what is missing
            raise DamagedCheckpointError(f"checkpoint {place} cannot be read ({_first_line(error)})") from error
        differing = [name for name in digests.keys() | arrays.keys() if name not in arrays or digests.get(name) != _digest(arrays[name])]
        if differing:
            raise DamagedCheckpointError(f"checkpoint {place} is damaged: {len(differing)} arrays are not what was saved, the first is {min(differing)}")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in dataset.items()}
        values["skeleton"] = tuple(tuple(pair) for pair in values["skeleton"])
        return Saved(step, from_dict(experiment, f"checkpoint {place}"), DatasetInfo(**values), images_seen, arrays, place)

    def wait(self) -> None:
        """Returns when everything is on disk. CheckpointFailed where it cannot be written."""
        self._writing(self._manager.wait_until_finished)

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Whatever ends a run, the last checkpoint comes to disk; unless it is that which fails, or processes are lost that would have to write theirs."""
        if isinstance(error, CheckpointWriteError | jax.errors.JaxRuntimeError):
            return
        self.wait()
        self.close()

    def _writing(self, write):
        try:
            write()
        except Exception as error:
            raise CheckpointWriteError(
                f"a checkpoint cannot be written to {self.directory} ({_first_line(error)}): make room there, or mend what is wrong, and give the same "
                "command again; the run goes on from its last complete checkpoint"
            ) from error

    def _set_aside(self, steps):
        distributed.barrier()  # nobody reads them any more
        if distributed.is_primary():
            aside = self.directory.parent / DAMAGED
            aside.mkdir(parents=True, exist_ok=True)
            (aside / "README").write_text("Checkpoints that could not be read, or did not hold what was saved.\n")  # an object store has no folders without files
            for step in steps:
                target = aside / step
                if target.exists():
                    target.rmtree()
                (self.directory / step).rename(target)
        distributed.barrier()
        self._manager.reload()


class CheckpointWriteError(TrainingError):
    """A checkpoint cannot be written."""


class DamagedCheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


def _digest(leaf):
    return zlib.crc32(np.ascontiguousarray(leaf).tobytes())


def _first_line(error):
    text = str(error).strip() or type(error).__name__
    plain = re.search("No space left on device|Disk quota exceeded|File too large|Permission denied|Read-only file system", text)
    return plain.group() if plain else text.splitlines()[0][:300]


def _named(tree):
    def name(path):
        return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)

    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
