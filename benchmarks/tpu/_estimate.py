"""What a row of tpu_train_step.json leads one to expect: memory that is left, how long a step takes at least, how much of it is left on many chips."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.tpu._programs import CHIPS, Chip

ASSUMPTIONS = """\
- HBM used is arguments + outputs - what outputs share with arguments + temporaries + the program itself, as the compiler has laid them out for one chip; HBM
  available is what the compiler lets programs have (it says so when it refuses one).
- "At least" is the time of the products' FLOPs at the chip's published bfloat16 peak: a lower bound that no program reaches. FLOPs are those of convolutions and matrix
  products, every turn of loops counted, with RoIs of 16 to 800 pixels spread evenly by the logarithm of their size; XLA's own count has all operations, but the body
  of a loop once.
- "By cycles" is the sum of the cycles that the compiler expects of its operations, at the clock that follows from the chip's peak rate. Custom gathers and scatters,
  sorting, waiting for memory and every turn but the first of loops whose length data decide are not in it: a better guess than the lower bound, not a measurement. It is
  given for programs compiled with effort 0, as a run's are; others are slower.
- Adding up B bytes of gradients over n chips, each chip sends 2 (n - 1) / n B. "All-reduce" is from the time over all links of a chip at once to that over one link (a
  single ring), at the published rates of links ({links}), and without latencies.
- Scaling is the share of a step that is not spent on the all-reduce: at its lowest if the rest runs at peak and the all-reduce over one link, at its highest if the rest
  takes the compiler's cycles (or runs at peak, where they are not given) and the all-reduce uses all links; in both none of it is hidden behind computation. Reading
  data, slow hosts and evaluation are not in it.
"""


class Reduction(NamedTuple):
    """What travels in a step: bytes of each chip."""

    gradient_operations: int
    gradient_bytes: int
    other_operations: int  # counts of losses, metrics, sums of batch norm
    other_bytes: int


class Estimate(NamedTuple):
    """Milliseconds of a step and shares of it."""

    least_ms: float  # a lower bound
    cycles_ms: float | None  # by the compiler's cycles; None where it has noted none, or was told to take less trouble than for a run
    reduce_ms: tuple[float, float]  # over all links, over one
    scaling: tuple[float, float]  # from, to


def assumptions() -> str:
    """What the estimates are made of, in a list."""
    links = ", ".join(f"{name}: {chip.links} of {chip.link / 1e9:.0f} GB/s each way" for name, chip in CHIPS.items())
    return ASSUMPTIONS.format(links=links)


def chip_of(row: Mapping[str, Any]) -> Chip:
    """The kind of chip that a row's program is for."""
    return CHIPS[row["topology"].partition(":")[0]]


def used_bytes(row: Mapping[str, Any]) -> int:
    """HBM of a chip while a step runs."""
    return row["argument_bytes"] + row["output_bytes"] - row["alias_bytes"] + row["temp_bytes"] + row["code_bytes"]


def reduction(row: Mapping[str, Any]) -> Reduction:
    """The all-reduces of gradients, with a hundredth or more of all bytes, and the small ones."""
    everything = sum(size for _, size in row["all_reduces"])
    large = [size for _, size in row["all_reduces"] if size >= everything / 100]
    return Reduction(len(large), sum(large), len(row["all_reduces"]) - len(large), everything - sum(large))


def estimate_step(row: Mapping[str, Any]) -> Estimate:
    """Bounds and guesses, as ``assumptions`` says."""
    chip, travels = chip_of(row), reduction(row)
    sent = 2 * (row["chips"] - 1) / row["chips"] * (travels.gradient_bytes + travels.other_bytes)
    least = 1e3 * row["product_flops"] / chip.flops
    cycles = None if row["cycles"] is None or row["effort"] < 0 else max(least, 1e3 * row["cycles"] / chip.clock)
    best, ring = 1e3 * sent / (chip.links * chip.link), 1e3 * sent / chip.link
    longest = least if cycles is None else cycles
    return Estimate(least, cycles, (best, ring), (least / (least + ring), longest / (longest + best)))
