"""Programs compiled ahead of time for TPUs, on a machine without one, and the compiler's account of them.

    device = topology("v5e:2x2")[0]
    figures(compile_for(function, arguments, device))

Nothing runs. Memory is what the compiler has laid out, and reliable: ``temp_bytes`` lie in HBM, in addition
to arguments and outputs. FLOPs and bytes are the compiler's estimate, at best a ranking: the body of a loop
counts once, of branches the most expensive; bytes include padding and what never leaves the core; rows that
are gathered or scattered take far longer than their bytes suggest.

Two processes can compile at a time if both have ALLOW_MULTIPLE_LIBTPU_LOAD=1 in their environment.
"""

import os

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu does not ask the network which TPU it is on
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where arrays live; before jax is imported

import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from mrcnn_jax.errors import InputError
from mrcnn_jax.runtime import compiling_for


class Chip(NamedTuple):
    """Published rates of a chip (cloud.google.com/tpu/docs), and slices of it that exist.

    Attributes:
        flops: peak FLOPs per second, in bfloat16.
        bandwidth: bytes of HBM per second.
        available: bytes of HBM that programs may use, from the compiler's message when one asks for more.
        links: number of links to other chips.
        link: bytes per second of a link in each direction: half the published bandwidth per chip, divided by
            the links.
        clock: cycles per second: the peak rate divided by 2 x 128 x 128 FLOPs per cycle (v6e: 2 x 256 x 256)
            for each of 4 (v5e, v6e) or 8 matrix units.
    """

    flops: float
    bandwidth: float
    available: int
    links: int
    link: float
    clock: float
    slices: tuple[str, ...]


GIB = 2**30
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": Chip(275e12, 1200e9, int(30.75 * GIB), 6, 50e9, 1.05e9, CUBIC),
    "v5e": Chip(197e12, 819e9, int(15.75 * GIB), 4, 50e9, 1.50e9, FLAT),
    "v5p": Chip(459e12, 2765e9, int(95.74 * GIB), 6, 100e9, 1.75e9, CUBIC),
    "v6e": Chip(918e12, 1638e9, int(31.25 * GIB), 4, 100e9, 1.75e9, FLAT),
}


class Program(NamedTuple):
    """A compiled program, and the seconds of tracing, lowering and compiling it."""

    compiled: jax.stages.Compiled
    seconds: float


def topology(name: str) -> Sequence[jax.Device]:
    """Returns the devices of a slice such as "v5e:2x2" or "v4:2x2x1", one for each chip.

    Raises:
        InputError: the slice does not exist, or libtpu is missing.
    """
    generation, _, sides = name.partition(":")
    if generation not in CHIPS or sides not in CHIPS[generation].slices:
        known = "; ".join(f"{generation}:{', '.join(chip.slices)}" for generation, chip in CHIPS.items())
        raise InputError(f"there is no TPU topology {name!r}; choose from {known}")
    # both cores of a chip as one device, as programs on these TPUs see them
    options = {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise InputError('compiling for TPUs needs libtpu: pip install "jax[tpu]"') from error
        raise InputError(f"libtpu does not compile for {name!r}: {first_sentence(error)}") from error


def compile_for(
    function: Callable[..., Any], arguments: Sequence[Any], device: jax.Device | None = None
) -> Program:
    """Traces and compiles a function for a device of a ``topology``.

    Args:
        function: of arrays; one that has been through ``jax.jit`` or ``jax.pmap`` keeps its settings.
        arguments: arrays, or structs with shape and dtype.
        device: None if the function has its devices.
    """
    function = function if hasattr(function, "lower") else jax.jit(function)
    if device is not None:
        shape_on = partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
        arguments = jax.tree.map(lambda array: shape_on(array.shape, array.dtype), tuple(arguments))
    start = time.perf_counter()
    with compiling_for("tpu"):
        compiled = function.lower(*arguments).compile()
    return Program(compiled, time.perf_counter() - start)


def figures(program: Program) -> dict[str, Any]:
    """Returns the compiler's figures for each device, as the module describes them."""
    memory, costs = program.compiled.memory_analysis(), program.compiled.cost_analysis() or {}
    return {
        "flops": costs.get("flops", 0.0),
        "bytes_accessed": costs.get("bytes accessed", 0.0),
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "compile_seconds": round(program.seconds, 2),
    }


def estimate(flops: float, bytes_accessed: float, chip: Chip) -> float:
    """Returns the milliseconds of a program at a chip's peak rates: of computation or memory, the longer."""
    return round(1e3 * max(flops / chip.flops, bytes_accessed / chip.bandwidth), 4)


def first_sentence(error: BaseException) -> str:
    """Returns the first sentence of a compiler's error; for insufficient memory, how much is missing."""
    text = str(error).strip()
    if memory := re.search(r"Ran out of memory in memory space \w+\. Used \S+ of \S+ \w+", text):
        return memory.group()
    line = re.sub(r"^[A-Z_]+: ", "", text.splitlines()[0]) if text else type(error).__name__
    return re.split(r"\.(?:\s|$)", line)[0][:300]
