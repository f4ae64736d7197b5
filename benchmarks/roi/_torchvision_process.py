"""Process of ``_torchvision_side.py``, which times the RoI operations of torchvision on the same inputs."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roi._programs import BACKWARD, Group, make_inputs
from benchmarks.roi._workloads import Workload
from mrcnn_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Side:
    """The process: ``call(function, ...)`` returns its answer."""

    call: Callable[..., dict[str, Any]]
    versions: dict[str, Any]
    folder: Path  # for arrays that it reads


@contextmanager
def start(python: str) -> Iterator[Side]:
    """Starts the process on JAX's kind of device; InputError if torchvision does not run there."""
    script = Path(__file__).with_name("_torchvision_side.py")
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # torch's threads sleep while JAX is timed
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    try:
        process = subprocess.Popen([python, "-I", script], env=environment, **pipes)
    except OSError as error:
        raise InputError(f"{python} cannot be run: {error.strerror}") from error

    def call(function: str, **arguments: Any) -> dict[str, Any]:
        try:
            process.stdin.write(json.dumps({"do": function, **arguments}, default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": "torchvision's process has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    with process, tempfile.TemporaryDirectory() as folder:
        try:
            try:
                versions = call("versions", device="cuda" if jax.default_backend() == "gpu" else "cpu")
            except RuntimeError as error:
                message = f"{python} does not run torchvision on this kind of device: {error}"
                raise InputError(message) from error
            yield Side(call, versions, Path(folder))
        finally:
            _send.cache_clear()
            with suppress(BrokenPipeError):
                process.stdin.close()


def prepare(side: Side, group: Group) -> tuple[dict[str, Any], Callable[[], float]]:
    """Returns fields of the result file, and a function that runs a group and returns seconds.

    Raises:
        RuntimeError: with the reason, if torchvision cannot.
    """
    workload, kind = group.workload, group.kind
    _send(side, workload, group.batch, group.dtype)
    side.call(
        "prepare", operation=kind.torchvision, samples=kind.sampling_ratio, bins=workload.bins,
        strides=workload.strides, backward=group.direction == BACKWARD,
    )  # fmt: skip
    fields = {"is_default": False}

    def call() -> float:
        answer = side.call("run")
        seconds = answer.pop("seconds")
        fields.update(answer)
        return seconds

    return fields, call


@lru_cache(maxsize=1)
def _send(side: Side, workload: Workload, batch: int, dtype: str) -> None:
    """Sends the inputs, unless the process has them."""
    inputs, file = make_inputs(workload, batch, dtype), side.folder / "inputs.npz"
    arrays = {f"features{level}": features for level, features in enumerate(inputs.features)}
    arrays |= {"boxes": inputs.boxes, "cotangent": inputs.cotangent}
    arrays = {
        name: np.asarray(array.astype(jnp.float32)) for name, array in arrays.items()
    }  # no bfloat16 in NumPy
    np.savez(file, levels=inputs.levels, **arrays)
    side.call("load", file=file, dtype=dtype)
    file.unlink()
