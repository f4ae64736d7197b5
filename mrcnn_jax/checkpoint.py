"""Checkpoints of a run with Orbax: the training state, the position in the data, and the experiment that both belong to."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mrcnn_jax.config import Experiment, from_dict, to_dict
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo


class Checkpoints:
    """The checkpoints of one run directory. A checkpoint appears under its name only when it is complete.

    ``read_only``: leave the directory as it is; a run may be writing to it.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, read_only: bool = False):
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=not read_only)
        # named here, for a manager that has not written anything yet could not tell what a checkpoint holds
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @property
    def latest(self) -> int | None:
        """The newest complete step."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, images_seen: int, experiment: Experiment, info: DatasetInfo) -> None:
        """Writes in the background; the state may be donated to the next step at once.

        ``images_seen`` is all there is to the data iterator: the order of images is a function of the seed (data.pipeline).
        """
        # a copy of its own: on CPU the host's view of a donated buffer would change under the writer's hands
        state = jax.tree.map(lambda leaf: np.array(leaf), state)
        about = {"experiment": to_dict(experiment), "dataset": info._asdict(), "images_seen": images_seen}
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)))

    def about(self, step: int) -> tuple[Experiment, DatasetInfo, int]:
        """The experiment, the data set's classes and the images seen, of a checkpoint."""
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in about["dataset"].items()}
        values["skeleton"] = tuple(tuple(pair) for pair in values["skeleton"])
        return from_dict(about["experiment"], f"checkpoint {self.directory / str(step)}"), DatasetInfo(**values), about["images_seen"]

    def restore(self, step: int, template: Any) -> Any:
        """The state, as NumPy arrays in the template's structure.

        Raises InputError, naming the parameters, when the checkpoint is of another model.
        """
        saved = self._manager.item_metadata(step)["state"].tree
        self._check(step, saved, template)
        template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template)))["state"]

    def restore_variables(self, step: int) -> dict[str, Any]:
        """Parameters and model state alone, for inference, whatever the optimiser was."""
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
        return {"params": state["params"], **state["model_state"]}

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _check(self, step, saved, template):
        saved, wanted = (_shapes(tree) for tree in (saved, template))
        differing = sorted(name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name))
        if differing:
            name = differing[0]
            raise InputError(
                f"checkpoint {self.directory / str(step)} is of another model: {len(differing)} arrays differ, the first is {name}, "
                f"{saved.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the experiment"
            )


def _shapes(tree):
    def name(path):
        return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)

    return {name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
