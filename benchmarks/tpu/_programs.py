"""Programs compiled ahead of time for TPUs, on a machine without one: what the compiler says that they need.

    device = topology("v5e:2x2")[0]
    figures(compile_for(function, arguments, device))

Nothing runs. Memory is what the compiler has laid out, and can be relied on: ``temp_bytes`` lie in HBM, in addition to arguments and outputs; what it keeps in the
memory of the core is not among them. FLOPs and bytes are the compiler's estimate, and a ranking at best:

- The body of a loop is counted once, however often it turns (``loops`` says how often, where that is known), and of the branches of a conditional the dearest.
- The bytes of every fused operation are added up, whether they lie in HBM or in the memory of the core, and padding is included.
- Rows that are gathered or scattered count by their bytes. A TPU takes them one after the other, and needs far longer than their bytes suggest.
- A Pallas kernel counts as nothing, unless it states its cost.

Two processes can compile at a time if both have ALLOW_MULTIPLE_LIBTPU_LOAD=1 in their environment.
"""

import os

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu does not ask the network which TPU it is on
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where arrays live; before jax is imported

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Sharding, SingleDeviceSharding

from benchmarks.tpu._hlo import loops
from mrcnn_jax.errors import InputError


class Chip(NamedTuple):
    """Published rates of a chip (cloud.google.com/tpu/docs), what the compiler says of its memory, and the slices of it that can be compiled for."""

    flops: float  # a second, bfloat16
    bandwidth: float  # bytes of HBM a second
    memory: float  # bytes of HBM
    available: int  # bytes of HBM that programs may use, by the compiler's message when one asks for more
    links: int  # to other chips
    link: float  # bytes a second that a link carries each way: of the published "bidirectional bandwidth per chip", half, by the number of links
    clock: float  # cycles a second: the peak rate by the FLOPs of a cycle, 2 x 128 x 128 for each of 4 (v5e) or 8 matrix units, v6e 2 x 256 x 256 for each of 4
    slices: tuple[str, ...]


GIB = 2**30
FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": Chip(275e12, 1200e9, 32e9, int(30.75 * GIB), 6, 50e9, 1.05e9, CUBIC),
    "v5e": Chip(197e12, 819e9, 16e9, int(15.75 * GIB), 4, 50e9, 1.50e9, FLAT),
    "v5p": Chip(459e12, 2765e9, 95e9, int(95.74 * GIB), 6, 100e9, 1.75e9, CUBIC),
    "v6e": Chip(918e12, 1638e9, 32e9, int(31.25 * GIB), 4, 100e9, 1.75e9, FLAT),
}


class Program(NamedTuple):
    """What ``compile_for`` returns."""

    compiled: jax.stages.Compiled
    seconds: float  # of lowering and compiling


def topology(name: str) -> Sequence[jax.Device]:
    """The devices of a slice such as "v5e:2x2" or "v4:2x2x1", one for each chip; InputError without libtpu, or for an unknown name."""
    generation, _, sides = name.partition(":")
    if generation not in CHIPS or sides not in CHIPS[generation].slices:
        known = "; ".join(f"{generation}:{', '.join(chip.slices)}" for generation, chip in CHIPS.items())
        raise InputError(f"There is no TPU topology {name!r}: choose from {known}")
    # both cores of a chip as one device, as programs on these TPUs see them
    options = {"chip_config_name": "megacore"} if generation in ("v4", "v5p") else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise InputError('Compiling for TPUs needs libtpu, with or without a TPU: pip install "jax[tpu]"') from error
        raise InputError(f"libtpu does not compile for {name!r}: {first_sentence(error)}") from error


def on_device(arguments: Any, where: jax.Device | Sharding) -> Any:
    """The shapes and dtypes of arrays or structs, placed on a device or spread over several."""
    sharding = where if isinstance(where, Sharding) else SingleDeviceSharding(where)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), arguments)


def compile_for(function: Callable[..., Any], arguments: Sequence[Any], device: jax.Device | None = None) -> Program:
    """A function compiled for a device of a ``topology``.

    Args:
        function: of arrays; one that has been through ``jax.jit`` or ``jax.pmap`` keeps its settings.
        arguments: arrays, or structs with shape and dtype.
        device: None if the arguments are placed already (``on_device``), or if the function has its devices.
    """
    function = function if hasattr(function, "lower") else jax.jit(function)
    arguments = arguments if device is None else on_device(tuple(arguments), device)
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return Program(compiled, time.perf_counter() - start)


def figures(program: Program, chip: Chip | None = None) -> dict[str, Any]:
    """The compiler's figures for each device, as the module describes them; with a chip, ``estimated_ms`` too.

    ``loops`` holds how often each loop turns, None where data decide. ``estimated_ms`` is ``estimate`` or, as loops are counted once, None if there are any.
    """
    memory, costs = program.compiled.memory_analysis(), program.compiled.cost_analysis() or {}
    turns = loops(program.compiled.as_text() or "")
    result = {
        "flops": costs.get("flops", 0.0), "bytes_accessed": costs.get("bytes accessed", 0.0), "loops": turns,
        "temp_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes, "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes, "code_bytes": memory.generated_code_size_in_bytes, "compile_seconds": round(program.seconds, 2),
    }  # fmt: skip
    if chip is not None:
        result["estimated_ms"] = None if turns else estimate(result["flops"], result["bytes_accessed"], chip)
    return result


def estimate(flops: float, bytes_accessed: float, chip: Chip) -> float:
    """Milliseconds at a chip's peak rates: what takes longer, computing or reading and writing. Real programs take longer, unless their bytes stay in the core."""
    return round(1e3 * max(flops / chip.flops, bytes_accessed / chip.bandwidth), 4)


def first_sentence(error: BaseException) -> str:
    """What a compiler's error says, without the pages of detail: for memory that does not suffice, how much."""
    text = str(error).strip()
    if memory := re.search(r"Ran out of memory in memory space \w+\. Used \S+ of \S+ \w+", text):
        return memory.group()
    line = re.sub(r"^[A-Z_]+: ", "", text.splitlines()[0]) if text else type(error).__name__
    return re.split(r"\.(?:\s|$)", line)[0][:300]
