"""Several processes as one run: joining them, waiting for each other, exchanging small values."""

import glob
import os
import pickle
import zlib
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mrcnn_jax.errors import InputError, Interrupted, first_line

DEVICE_AXIS = "devices"
"""Name of the mapped axis over all devices of all processes."""


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the processes of a run; must precede the first computation.

    Args:
        coordinator: HOST:PORT of process 0, a free port there. None recognises Slurm (srun), Open MPI
            (mpirun) and TPU pods, and does nothing elsewhere; "none" never joins anything.
        processes: number of processes.
        process: index of this process, from 0.

    Raises:
        InputError: the arguments are incomplete or out of range.
        Interrupted: the other processes cannot be reached.
    """
    by_hand = (processes, process) != (None, None)
    if coordinator == "none" or (coordinator is None and not by_hand and not _launched_as_one_of_many()):
        return
    if (coordinator is None and by_hand) or (coordinator is not None and None in (processes, process)):
        raise InputError(
            "--coordinator HOST:PORT, --processes N and --process I must be given together, or not at all "
            "under Slurm, Open MPI and on TPU pods"
        )
    if coordinator is not None and not (":" in coordinator and processes > 0 and 0 <= process < processes):
        raise InputError(
            "--coordinator must be HOST:PORT, and --process from 0 to --processes - 1, "
            f"not {coordinator}, {process} and {processes}"
        )
    try:
        jax.distributed.initialize(coordinator, processes, process)
        barrier()  # connects the devices now, before some processes compile longer than others wait
    except (RuntimeError, ValueError) as error:
        reason = f"the processes of the run cannot reach each other: {first_line(error)}"
        raise Interrupted(reason) from error


def _launched_as_one_of_many() -> bool:
    """Returns whether a launcher started several processes, or a TPU is here that may be part of a pod."""
    tasks = max(int(os.environ.get(name) or 1) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    has_tpu = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")) and _has_libtpu()
    uses_tpu = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return tasks > 1 or (has_tpu and uses_tpu and "TPU_SKIP_MDS_QUERY" not in os.environ)


def _has_libtpu():
    return find_spec("libtpu") is not None


def is_primary() -> bool:
    """Returns whether this process writes logs, metrics and pictures."""
    return jax.process_index() == 0


def spans_processes(leaf: Any) -> bool:
    """Returns whether an array also lies on devices of other processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def barrier() -> None:
    """Blocks until all processes have called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("mrcnn_jax")


def all_gather_object(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order; a value is anything that pickle holds."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(zlib.compress(pickle.dumps(value), level=1), np.uint8)  # masks are mostly zeros
    sizes = multihost_utils.process_allgather(np.array([encoded.size]), tiled=True)
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: encoded.size] = encoded
    everyone = multihost_utils.process_allgather(padded[None], tiled=True)
    texts = (zlib.decompress(row[:size].tobytes()) for row, size in zip(everyone, sizes, strict=True))
    return [pickle.loads(text) for text in texts]
