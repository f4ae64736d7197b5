"""FLOPs of a program's convolutions and matrix products, read from the program: what does not depend on data counts with every turn of its loops."""

from math import prod

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr


def static_flops(program: ClosedJaxpr, platform: str, turns: int = 0) -> int:
    """Two FLOPs for each pair of numbers that are multiplied and added on ``platform`` for the program's results.

    A loop whose length data decide counts as ``turns``, a branch that they decide as the dearest. In a convolution, padding and the zeros between strided
    gradients are not counted.
    """
    jaxpr, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return count(jaxpr, platform, turns)


def count(jaxpr: Jaxpr, platform: str, turns: int = 0) -> int:
    """``static_flops`` of all equations, whether their results are used or not."""
    total, taken = 0, {}  # which branch the platform takes, by the variable that says so
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "platform_index":
                taken[equation.outvars[0]] = branch(equation, platform)
            case "cond":
                index, flops = equation.invars[0], [count(bare(program), platform, turns) for program in inner(equation)]
                total += flops[taken[index]] if index in taken else max(flops)
            case _:
                total += count_equation(equation, platform, turns)
    return total


def count_equation(equation: JaxprEqn, platform: str, turns: int = 0) -> int:
    """``count`` of one equation that does not branch."""
    match equation.primitive.name:
        case "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            return 2 * equation.outvars[0].aval.size * prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        case "conv_general_dilated":
            return _convolution(equation)
        case "scan":
            turns_here = equation.params["length"]
        case "while":
            turns_here = turns
        case _:
            turns_here = 1
    return turns_here * sum(count(bare(program), platform, turns) for program in inner(equation))


def inner(equation: JaxprEqn) -> list[Jaxpr | ClosedJaxpr]:
    """The programs in an equation: bodies, branches in their order, what is called."""
    settings = (value if isinstance(value, (tuple, list)) else (value,) for value in equation.params.values())
    return [program for values in settings for program in values if isinstance(program, (Jaxpr, ClosedJaxpr))]


def bare(program: Jaxpr | ClosedJaxpr) -> Jaxpr:
    """Without the constants."""
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def branch(equation: JaxprEqn, platform: str) -> int:
    """Which branch of ``jax.lax.platform_dependent`` a platform takes, from the equation that finds it out."""
    return [names is None or platform in names for names in equation.params["platforms"]].index(True)


def _convolution(equation):
    settings, (images, kernel), out = equation.params, (variable.aval.shape for variable in equation.invars), equation.outvars[0].aval.shape
    numbers = settings["dimension_numbers"]
    pairs = prod(  # of places of the result and taps of the kernel that meet a real number
        _pairs(images[lhs], kernel[rhs], out[place], *of_side)
        for lhs, rhs, place, *of_side in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:],
            settings["window_strides"], settings["padding"], settings["lhs_dilation"], settings["rhs_dilation"], strict=True,
        )
    )  # fmt: skip
    return 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]] * pairs


def _pairs(size, taps, places, stride, padding, dilation, tap_dilation):
    """Along one side of an image."""
    position = np.arange(places)[:, None] * stride + np.arange(taps) * tap_dilation - padding[0]
    return int(((position >= 0) & (position <= (size - 1) * dilation) & (position % dilation == 0)).sum())
