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

from mrcnn_jax.errors import InputError


class Chip(NamedTuple):
    """Published peak rates of a chip (cloud.google.com/tpu/docs), and the slices of it that can be compiled for."""

    flops: float  # a second, bfloat16
    bandwidth: float  # bytes of HBM a second
    memory: float  # bytes of HBM
    slices: tuple[str, ...]


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBIC = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": Chip(275e12, 1200e9, 32e9, CUBIC),
    "v5e": Chip(197e12, 819e9, 16e9, FLAT),
    "v5p": Chip(459e12, 2765e9, 95e9, CUBIC),
    "v6e": Chip(918e12, 1638e9, 32e9, FLAT),
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


# ---------------------------------------------------------------- loops of a program's text

ROOT = ""
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = .*? ([a-z][\w\-]*)\((.*)$")


class _Instruction(NamedTuple):
    operation: str
    operands: list[str]
    rest: str  # of the line, from the operands on


def loops(text: str) -> list[int | None]:
    """How often each loop of a program in HLO turns, in the order of the text.

    Known if the compiler has noted it, or if the loop counts up by one, from a constant and as long as the counter is below a constant: those of ``lax.scan``,
    ``lax.map``, and ``lax.fori_loop`` with bounds that are no arrays. None otherwise.
    """
    computations = _parse(text)
    return [
        _turns(computations, caller, loop)
        for caller in computations.values()
        for name, loop in caller.items()
        if loop.operation == "while" and name != ROOT
    ]


def _parse(text):
    """Instructions by name, for each computation; its result is there once more as ROOT."""
    computations, current = {}, {}
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            current = computations.setdefault(match.group(1), {})
        elif match := INSTRUCTION.match(line):
            root, name, operation, rest = match.groups()
            operands = rest.split(")")[0] if operation != "constant" else ""
            current[name] = instruction = _Instruction(operation, re.findall(r"%([\w.\-]+)", operands), rest)
            if root:
                current[ROOT] = instruction
    return computations


def _turns(computations, caller, loop):
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(noted.group(1))
    condition, body = (computations[re.search(rf"{part}=%?([\w.\-]+)", loop.rest).group(1)] for part in ("condition", "body"))
    test, before, after = condition[ROOT], _source(caller, loop.operands[0]), body[ROOT]
    if test.operation != "compare" or "direction=LT" not in test.rest or {before.operation, after.operation} != {"tuple"}:
        return None

    def constant(computation, name):
        """The number that a name within the loop stands for in every turn; None if there is none."""
        index = _part(computation, name)
        if index is None:
            return _constant(computation, name)
        handed_on = _part(body, after.operands[index]) == index
        return _constant(caller, before.operands[index]) if handed_on else None

    counter, limit = _part(condition, test.operands[0]), constant(condition, test.operands[1])
    if counter is None or limit is None:
        return None
    begin, step = _constant(caller, before.operands[counter]), _source(body, after.operands[counter])
    if begin is None or step.operation != "add":
        return None
    others = [name for name in step.operands if _part(body, name) != counter]
    return max(limit - begin, 0) if len(others) == 1 and constant(body, others[0]) == 1 else None


def _source(computation, name):
    """The instruction of a name, or what it copies."""
    while (instruction := computation[name]).operation in ("copy", "bitcast"):
        (name,) = instruction.operands
    return instruction


def _part(computation, name):
    """Which part of a loop's state, the argument of its condition and body, a name is; None for anything else."""
    instruction = _source(computation, name)
    if instruction.operation != "get-tuple-element" or computation[instruction.operands[0]].operation != "parameter":
        return None
    return int(re.search(r"index=(\d+)", instruction.rest).group(1))


def _constant(computation, name):
    instruction = _source(computation, name)
    number = re.match(r"(-?\d+)\)", instruction.rest) if instruction.operation == "constant" else None
    return int(number.group(1)) if number else None
