"""Several processes as one run: how they find each other, and what they tell each other."""

import glob
import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mrcnn_jax.errors import InputError, Interrupted


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run; call it before anything is computed.

    Args:
        coordinator: HOST:PORT of process 0, on a port that is free there; None recognises Slurm's srun, Open MPI's mpirun and TPU pods by themselves, and otherwise
            leaves this process alone; "none" always does.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        InputError: the three do not go together.
        StartAgain: the others are not there.
    """
    if coordinator == "none" or (coordinator is None and (processes, process) == (None, None) and not _one_of_many()):
        return
    if coordinator is None and (processes, process) != (None, None) or coordinator is not None and None in (processes, process):
        raise InputError("--coordinator HOST:PORT, --processes N and --process I belong together: give all three, or none where Slurm, Open MPI or a TPU pod says")
    if coordinator is not None and not (":" in coordinator and processes > 0 and 0 <= process < processes):
        raise InputError(f"--coordinator must be HOST:PORT, and --process from 0 to --processes - 1, not {coordinator}, {process} and {processes}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
        barrier()  # connects the devices now, while no process keeps another waiting with compiling
    except (RuntimeError, ValueError) as error:
        raise Interrupted(f"the processes of the run cannot find each other: {str(error).splitlines()[0]}") from error


def _one_of_many() -> bool:
    """Whether a launcher has started this process as one of several, or it runs on a TPU, which may be part of a pod."""
    tasks = max(int(os.environ.get(name) or 1) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    on_tpu = (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")) and "TPU_SKIP_MDS_QUERY" not in os.environ
    return tasks > 1 or bool(on_tpu and _has_libtpu() and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu"))


def _has_libtpu():
    from importlib.util import find_spec

    return find_spec("libtpu") is not None


def is_primary() -> bool:
    """Whether this process is the one that writes logs, metrics and pictures."""
    return jax.process_index() == 0


def spans_processes(leaf: Any) -> bool:
    """Whether an array lies on devices of other processes too."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def barrier() -> None:
    """Returns when all processes have come this far."""
    if jax.process_count() > 1:
        jax.pmap(lambda x: jax.lax.psum(x, "all"), axis_name="all")(np.ones(jax.local_device_count())).block_until_ready()


def all_gather_object(value: Any) -> list[Any]:
    """What each process has, in all of them, in their order; anything that JSON holds."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([text.size]), tiled=True)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded[None], tiled=True)
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]
