"""StableHLO: the detector as programs that JAX alone runs, for CPUs, NVIDIA GPUs and TPUs in one file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mrcnn_jax.config import Experiment
from mrcnn_jax.data.transforms import image_type, padded_size
from mrcnn_jax.errors import InputError, printable
from mrcnn_jax.models.systems import make_model
from mrcnn_jax.runtime import compiling_for

PLATFORMS = ("cpu", "cuda", "tpu")
"""JAX's names of the platforms that a program is for."""
Arrays = dict[str, Any]
"""Arrays by name: of the weights by path ("params/backbone/stem/kernel"), and of the results."""


def write(folder: Path, experiment: Experiment, variables: Arrays, batch_size: int) -> dict[str, list[int]]:
    """Writes a program for landscape and one for portrait images; weights are their first argument.

    Returns:
        The padded height and width of each file.
    """
    weights, data = flatten_dict(variables, sep="/"), experiment.data
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    sizes = {padded_size(data, portrait): None for portrait in (False, True)}
    written = {}
    for height, width in sizes:
        shape = batch_size, height, width, 3
        images = jax.ShapeDtypeStruct(shape, image_type(experiment.model.conventions))
        traced = jax.export.export(jax.jit(_make_function(experiment)), platforms=PLATFORMS)
        program = traced(weights, images, jax.ShapeDtypeStruct((batch_size, 2), jnp.int32))
        file = f"detector_{height}x{width}.stablehlo"
        (folder / file).write_bytes(program.serialize())
        written[file] = [height, width]
    return written


def _make_function(experiment: Experiment) -> Callable[[Arrays, Any, Any], Arrays]:
    """Returns the function (weights, images, sizes) -> results, fast on each platform."""
    model = make_model(experiment.model, jnp.dtype(experiment.train.dtype))

    def on(platform: str) -> Callable[..., Arrays]:
        def detect(variables, images, sizes):
            with compiling_for(platform):
                found = model.apply(variables, images, sizes)
            return {name: array for name, array in vars(found).items() if array is not None}

        return detect

    def detect(weights, images, sizes):
        branches = {"cpu": on("cpu"), "cuda": on("gpu"), "tpu": on("tpu")}
        return jax.lax.platform_dependent(unflatten_dict(weights, sep="/"), images, sizes, **branches)

    return detect


def read(file: Path, written_by: str) -> Callable[[Arrays, Any, Any], Arrays]:
    """Returns the program of a file as a function (weights, images, sizes) -> results.

    Args:
        file: that ``write`` has written.
        written_by: version of JAX that has written it, for messages.

    Raises:
        InputError: this JAX does not read the file, or it is not for the platform of this process.
    """
    ours, compiled = jax.export.default_export_platform(), []
    with _explaining(file, written_by):
        program = jax.export.deserialize(bytearray(file.read_bytes()))
    if ours not in program.platforms:
        raise InputError(f"{file} is for {', '.join(program.platforms)}, and does not run on {ours}")

    def run(*arguments: Any) -> Arrays:
        if not compiled:
            with _explaining(file, written_by):  # operations, too, are known for some months only
                lowered = jax.jit(program.call).lower(*arguments)
            compiled.append(lowered.compile())
        return compiled[0](*arguments)

    return run


@contextmanager
def _explaining(file: Path, written_by: str) -> Iterator[None]:
    """Turns whatever JAX raises for a program that it does not read into an InputError."""
    try:
        yield
    except Exception as error:  # JAX documents none
        reason = printable(error) or type(error).__name__
        raise InputError(
            f"{file} was written by jax {written_by}, which jax {jax.__version__} does not read: export the "
            f"detector again ({reason:.200})"
        ) from error
