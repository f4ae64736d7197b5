"""FLOPs of a program's convolutions and matrix products: two for each pair of numbers multiplied and added.

Compilers count the body of a loop once. Here it counts as often as it runs: read from the program where its
length is fixed, or found by running the program where data decide. Zeros in a matrix product count; a
convolution's padding and the zeros between strided gradients do not.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

from mrcnn_jax.runtime import compiling_for

CALLS = ("jit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def static_flops(program: ClosedJaxpr, iterations: int = 0) -> int:
    """Returns the FLOPs that a program's results need, without running it.

    Args:
        program: as ``jax.make_jaxpr`` returns it.
        iterations: of loops whose length data decide; of branches the most expensive counts.
    """
    return _count(_needed(program)[0], iterations)


def product_flops(function: Callable[..., Any], arguments: Sequence[Any], platform: str = "tpu") -> int:
    """Returns the FLOPs of a function with these very arguments, every loop and branch known.

    The function is traced for ``platform``, and run on the machine at hand to count how often each product is
    computed.
    """
    with compiling_for(platform):
        program = jax.make_jaxpr(function)(*arguments)
    jaxpr, used = _needed(program)
    leaves = [leaf for leaf, is_used in zip(jax.tree.leaves(tuple(arguments)), used, strict=True) if is_used]
    products = _products(jaxpr)
    if not products:
        return 0
    needed, none = ClosedJaxpr(jaxpr, program.consts), jnp.zeros(len(products), jnp.int32)
    counts = jax.jit(lambda *given: _Counter(products).run(needed, none, *given)[0])(*leaves)
    flops = map(_equation_flops, products)
    return sum(int(count) * each for count, each in zip(counts, flops, strict=True))


def _equation_flops(equation: JaxprEqn) -> int:
    """Returns the FLOPs of a product; 0 for any other equation."""
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        sides = (equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * equation.outvars[0].aval.size * prod(sides)
    return _convolution_flops(equation) if equation.primitive.name == "conv_general_dilated" else 0


def _needed(program: ClosedJaxpr) -> tuple[Jaxpr, list[bool]]:
    """Returns a program without what its results do not need, and which arguments are left."""
    return dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))


def _count(jaxpr: Jaxpr, iterations: int) -> int:
    """Returns the FLOPs of a program whose loops that data decide have the same number of iterations."""
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [_count(each, iterations) for each in _inner(equation)]
        times = equation.params["length"] if name == "scan" else iterations if name == "while" else 1
        total += _equation_flops(equation) + (max(inner) if name == "cond" else times * sum(inner))
    return total


def _inner(equation: JaxprEqn) -> list[Jaxpr]:
    """Returns the programs in an equation: bodies, branches in their order, functions that are called."""
    groups = (value if isinstance(value, tuple | list) else (value,) for value in equation.params.values())
    found = [each for group in groups for each in group if isinstance(each, Jaxpr | ClosedJaxpr)]
    return [each.jaxpr if isinstance(each, ClosedJaxpr) else each for each in found]


def _products(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """Returns the products of a program, also those in its loops, branches and functions."""
    inner = [product for equation in jaxpr.eqns for each in _inner(equation) for product in _products(each)]
    return [equation for equation in jaxpr.eqns if _equation_flops(equation)] + inner


class _Counter:
    """Evaluates programs, counting how often each product is computed."""

    def __init__(self, products: Sequence[JaxprEqn]):
        self.places = {id(equation): place for place, equation in enumerate(products)}

    def run(self, program: ClosedJaxpr, counts: Any, *arguments: Any) -> list[Any]:
        """Returns the counts, then the results of a program."""
        jaxpr = program.jaxpr
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *arguments), strict=True))

        def read(atoms: Sequence[Any]) -> list[Any]:
            return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

        for equation in jaxpr.eqns:
            counts, *results = self._equation(equation, counts, read(equation.invars))
            values |= zip(equation.outvars, results, strict=True)
        return [counts, *read(jaxpr.outvars)]

    def _equation(self, equation: JaxprEqn, counts: Any, given: list[Any]) -> list[Any]:
        settings = equation.params
        match equation.primitive.name:
            case "while":
                return self._while(settings, counts, given)
            case "scan":
                return self._scan(settings, counts, given)
            case "cond":
                branches = [partial(self.run, branch) for branch in settings["branches"]]
                return jax.lax.switch(given[0], branches, counts, *given[1:])
            case name if name in CALLS:
                (called,) = (each for each in settings.values() if isinstance(each, Jaxpr | ClosedJaxpr))
                called = called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, ())
                return self.run(called, counts, *given)
        if id(equation) in self.places:
            counts = counts.at[self.places[id(equation)]].add(1)
        results = equation.primitive.bind(*given, **settings)
        return [counts, *(results if equation.primitive.multiple_results else [results])]

    def _while(self, settings: dict[str, Any], counts: Any, given: list[Any]) -> list[Any]:
        first, last = settings["cond_nconsts"], settings["cond_nconsts"] + settings["body_nconsts"]

        def condition(state: list[Any]) -> Any:
            return self.run(settings["cond_jaxpr"], state[0], *given[:first], *state[1:])[1]

        def body(state: list[Any]) -> list[Any]:
            return self.run(settings["body_jaxpr"], state[0], *given[first:last], *state[1:])

        return jax.lax.while_loop(condition, body, [counts, *given[last:]])

    def _scan(self, settings: dict[str, Any], counts: Any, given: list[Any]) -> list[Any]:
        first, last = settings["num_consts"], settings["num_consts"] + settings["num_carry"]

        def body(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self.run(settings["jaxpr"], carry[0], *given[:first], *carry[1:], *slices)
            return results[: len(carry)], results[len(carry) :]

        start, length, reverse = [counts, *given[first:last]], settings["length"], settings["reverse"]
        carry, outputs = jax.lax.scan(body, start, given[last:], length, reverse)
        return [*carry, *outputs]


def _convolution_flops(equation: JaxprEqn) -> int:
    images, kernel = (variable.aval.shape for variable in equation.invars)
    out, settings = equation.outvars[0].aval.shape, equation.params
    numbers = settings["dimension_numbers"]
    sides = zip(
        (images[axis] for axis in numbers.lhs_spec[2:]),
        (kernel[axis] for axis in numbers.rhs_spec[2:]),
        (out[axis] for axis in numbers.out_spec[2:]),
        settings["window_strides"], settings["padding"], settings["lhs_dilation"], settings["rhs_dilation"],
        strict=True,
    )  # fmt: skip
    pairs = prod(_pairs(*side) for side in sides)
    return 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]] * pairs


def _pairs(
    size: int, taps: int, places: int, stride: int, padding: tuple[int, int], dilation: int, tap_dilation: int
) -> int:
    """Counts the pairs of an output place and a kernel tap that meet an input value, along one side."""
    position = np.arange(places)[:, None] * stride + np.arange(taps) * tap_dilation - padding[0]
    return int(((position >= 0) & (position <= (size - 1) * dilation) & (position % dilation == 0)).sum())
