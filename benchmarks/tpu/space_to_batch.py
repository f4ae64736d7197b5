"""python -m benchmarks.tpu.space_to_batch [PART ...]: cycles of convolutions with XLA's space-to-batch.

Compiles parts of the R50-FPN training step, forward and gradient, with and without the compiler's pass that
moves pieces of a map to the batch axis, and writes the cycles that it expects. Needs libtpu, but no TPU.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks._program import RESULTS
from benchmarks.tpu._hlo import estimated_cycles
from benchmarks.tpu._programs import compile_for, topology
from benchmarks.tpu._rows import read_ablation
from mrcnn_jax.atomic_io import write_json
from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.models.layers.blocked_stem import convolve_blocks, pool_blocks
from mrcnn_jax.models.layers.convolution import Conv
from mrcnn_jax.models.norm import make_norm
from mrcnn_jax.models.resnet import Block
from mrcnn_jax.runtime import TPU_FLAGS

FILE, SLICE, IMAGES, DTYPE = RESULTS / "tpu_space_to_batch.json", "v5e:2x2", 2, jnp.bfloat16
PARTS = {
    "stem": (800, 1344, 3), "stem on blocks": (800, 1344, 3), "RPN convolution on P2": (200, 336, 256),
    "res4": (50, 84, 1024), "res3": (100, 168, 512), "res5": (25, 42, 2048),
}  # fmt: skip
"""Height, width and channels of a part's maps, of an image of 800 x 1344."""


class Part(nn.Module):
    """The stem, two bottlenecks of a stage, or a 3x3 convolution with ReLU."""

    part: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, config = x.shape[-1], BackboneConfig()
        norm = make_norm(config.norm, config.norm_epsilon, train=True, dtype=DTYPE)
        if self.part.startswith("stem"):
            settings = config.width, (7, 7), (2, 2), 3
            if self.part == "stem on blocks":
                stem = nn.Conv(*settings, use_bias=False, dtype=DTYPE, conv_general_dilated=convolve_blocks)
                blocks = jnp.split(stem(x), 4, axis=-1)
                return pool_blocks(*map(nn.relu, map(norm(name="stem_norm"), blocks)))
            x = Conv(*settings, use_bias=False, dtype=DTYPE)(x)
            return nn.max_pool(nn.relu(norm(name="stem_norm")(x)), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        if not self.part.startswith("res"):
            return nn.relu(Conv(channels, (3, 3), padding=1, dtype=DTYPE)(x))
        for index in range(2):
            x = Block(channels // 4, 1, 1, config, norm, DTYPE, name=f"block{index}")(x)
        return x


def program(name: str) -> tuple[Callable[..., Any], list[Any]]:
    """Returns a part, with its gradient unless it is frozen, and the shapes of its arguments."""
    part, x = Part(name), jax.ShapeDtypeStruct((IMAGES, *PARTS[name]), DTYPE)
    variables = jax.eval_shape(part.init, jax.random.key(0), x)
    if name.startswith("stem"):
        return part.apply, [variables, x]

    def with_gradient(variables: Any, x: jax.Array, gradient: jax.Array) -> Any:
        params, frozen = variables["params"], variables.get("frozen", {})
        out, pull = jax.vjp(lambda params, x: part.apply({"params": params, "frozen": frozen}, x), params, x)
        return out, pull(gradient)

    return with_gradient, [variables, x, x]


def cycles(name: str, space_to_batch: bool) -> int | None:
    """Returns the compiler's estimate for a part."""
    options = dict.fromkeys((flag.removeprefix("--") for flag in TPU_FLAGS), space_to_batch)
    function, arguments = program(name)
    function = jax.jit(function, compiler_options=options)
    return estimated_cycles(compile_for(function, arguments, topology(SLICE)[0]).compiled.as_text())


def main(names: Sequence[str]) -> int:
    """Compiles the parts, all by default, and writes the result file after each; returns the exit status."""
    jax.config.update("jax_enable_compilation_cache", False)
    for name in names or PARTS:
        with_pass, without = map(partial(cycles, name), (True, False))
        row = {"part": name, "slice": SLICE, "with": with_pass, "without": without}
        row |= {"jax": jax.__version__, "libtpu": version("libtpu")}
        rows = [old for old in read_ablation(FILE) if old["part"] != name]
        write_json(FILE, {"rows": [*rows, row]})
        print(f"{name}: {with_pass:,} cycles with space-to-batch, {without:,} without", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
