"""FLOPs of a program's convolutions and matrix products, from a run of it: its loops turn as often as data say."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks.tpu._static_flops import bare, branch, count, count_equation, inner

CALLS = ("jit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def product_flops(function: Callable[..., Any], arguments: Sequence[Any], platform: str) -> int:
    """Two FLOPs for each pair of numbers that a program multiplies and adds, with these very arguments (``static_flops``, with every loop and branch known).

    The program is run, on the machine at hand, to see how often its loops turn and which branches it takes. Of ``jax.lax.platform_dependent`` these are the branches
    of ``platform``. Zeros in a matrix product count too; results that nobody uses, and what is computed in other ways, do not.
    """
    program = jax.make_jaxpr(function)(*arguments)
    jaxpr, needed = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))
    if not _multiplies(jaxpr):
        return 0
    leaves = [leaf for leaf, is_needed in zip(jax.tree.leaves(tuple(arguments)), needed, strict=True) if is_needed]
    return _run(ClosedJaxpr(jaxpr, program.consts), leaves, platform)[1]


def _run(program: ClosedJaxpr, arguments: Sequence[Any], platform: str) -> tuple[Sequence[Any], int]:
    """Results and FLOPs."""
    jaxpr = program.jaxpr
    if not _depends_on_data(jaxpr):
        return _compiled(program)(*arguments), count(jaxpr, platform)
    values, total = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *arguments), strict=True)), 0
    read = lambda atoms: [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]
    for equation in jaxpr.eqns:
        results, flops = _run_equation(equation, read(equation.invars), platform)
        values |= zip(equation.outvars, results, strict=True)
        total += flops
    return read(jaxpr.outvars), total


def _run_equation(equation, given, platform):
    settings, total = equation.params, 0
    match equation.primitive.name:
        case "while":
            ends = settings["cond_nconsts"], settings["cond_nconsts"] + settings["body_nconsts"]
            of_test, of_body, carry = given[: ends[0]], given[ends[0] : ends[1]], given[ends[1] :]
            while _run(settings["cond_jaxpr"], [*of_test, *carry], platform)[0][0]:
                carry, flops = _run(settings["body_jaxpr"], [*of_body, *carry], platform)
                total += flops
            return carry, total
        case "scan" if _depends_on_data(settings["jaxpr"].jaxpr):
            ends = settings["num_consts"], settings["num_consts"] + settings["num_carry"]
            fixed, carry, sliced, outputs = given[: ends[0]], given[ends[0] : ends[1]], given[ends[1] :], []
            turns = range(settings["length"])[:: -1 if settings["reverse"] else 1]
            for turn in turns:
                results, flops = _run(settings["jaxpr"], [*fixed, *carry, *(array[turn] for array in sliced)], platform)
                carry, total = results[: settings["num_carry"]], total + flops
                outputs.append(results[settings["num_carry"] :])
            outputs = [jnp.stack(arrays) for arrays in zip(*outputs[:: turns.step], strict=True)]
            return [*carry, *outputs], total
        case "cond":
            return _run(settings["branches"][int(given[0])], given[1:], platform)
        case "platform_index":
            return [jnp.int32(branch(equation, platform))], 0
        case name if name in CALLS:
            (called,) = inner(equation)
            return _run(called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ()), given, platform)
    results = equation.primitive.bind(*given, **settings)
    return results if equation.primitive.multiple_results else [results], count_equation(equation, platform)


def _depends_on_data(jaxpr: Jaxpr) -> bool:
    """Whether the arguments' values decide how much is done."""
    return any(
        equation.primitive.name in ("while", "cond", "platform_index") or any(_depends_on_data(bare(program)) for program in inner(equation))
        for equation in jaxpr.eqns
    )


def _multiplies(jaxpr: Jaxpr) -> bool:
    return any(equation.primitive.name in ("dot_general", "conv_general_dilated") or any(_multiplies(bare(program)) for program in inner(equation)) for equation in jaxpr.eqns)


@lru_cache(maxsize=256)
def _compiled(program: ClosedJaxpr) -> Callable[..., Any]:
    return jax.jit(jaxpr_as_fun(program))
