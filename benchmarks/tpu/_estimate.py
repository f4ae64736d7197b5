"""Estimates from a row of tpu_train_step.json: memory that is left, bounds of the step time, scaling to
many chips."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks.tpu._programs import CHIPS, Chip

ASSUMPTIONS = """\
- HBM used: arguments + outputs - the part that outputs share with arguments + temporaries + the program
  itself, as the compiler has laid them out for one chip. HBM available: what the compiler lets programs
  use, from its message when it refuses one.
- "At least": the time of the FLOPs at the chip's published bfloat16 peak, a lower bound that no program
  reaches. FLOPs are those of convolutions and matrix products with every iteration of loops counted, for
  RoIs of 16 to 800 pixels spread evenly by the logarithm of their size; XLA's own count has all operations,
  but the body of a loop once.
- "By cycles": the sum of the cycles that the compiler expects of its operations, at the clock that follows
  from the chip's peak rate. Custom gathers and scatters, sorting, waiting for memory and all but the first
  iteration of loops are not included: better than the lower bound, but not a measurement. Given for
  programs compiled with effort 0, as in a run; others are slower.
- "All-reduce": summing B bytes of gradients over n chips, each chip sends 2 (n - 1) / n B. From the time
  over all links of a chip at once to that over a single link (one ring), at the published rates ({links}),
  without latency.
- Scaling: share of a step that is not spent on the all-reduce, none of which is assumed to overlap with
  computation. Lower end: the rest runs at peak, and the all-reduce over one link. Upper end: the rest takes
  the compiler's cycles (at peak where they are not given), and the all-reduce uses all links. Data loading,
  slow hosts and evaluation are not included.
"""


class Reduction(NamedTuple):
    """All-reduces of a step, and their bytes on each chip."""

    gradient_operations: int
    gradient_bytes: int
    other_operations: int
    """Small ones: counts of losses, metrics, sums of batch norm."""
    other_bytes: int


class Estimate(NamedTuple):
    """Times of a step in milliseconds, and its scaling."""

    least_ms: float
    """Lower bound."""
    cycles_ms: float | None
    """By the compiler's cycles; None where there are none, or the effort was less than a run's."""
    reduce_ms: tuple[float, float]
    """All-reduce over all links, and over one."""
    scaling: tuple[float, float]
    """Lower and upper end."""


def assumptions() -> str:
    """Returns what the estimates rest on, as a Markdown list."""
    links = ", ".join(
        f"{name}: {chip.links} links of {chip.link / 1e9:.0f} GB/s in each direction"
        for name, chip in CHIPS.items()
    )
    return ASSUMPTIONS.format(links=links)


def chip_of(row: Mapping[str, Any]) -> Chip:
    """Returns the chip that a row's program is for."""
    return CHIPS[row["topology"].partition(":")[0]]


def used_bytes(row: Mapping[str, Any]) -> int:
    """Returns the HBM of a chip that a step uses."""
    parts = ("argument_bytes", "output_bytes", "temp_bytes", "code_bytes")
    return sum(row[part] for part in parts) - row["alias_bytes"]


def free_bytes(row: Mapping[str, Any]) -> int:
    """Returns the HBM of a chip that a step leaves free."""
    return chip_of(row).available - used_bytes(row)


def reduction(row: Mapping[str, Any]) -> Reduction:
    """Splits the all-reduces into those of gradients, at least a hundredth of all bytes, and small ones."""
    total = sum(size for _, size in row["all_reduces"])
    large = [size for _, size in row["all_reduces"] if size >= total / 100]
    return Reduction(len(large), sum(large), len(row["all_reduces"]) - len(large), total - sum(large))


def estimate_step(row: Mapping[str, Any]) -> Estimate:
    """Returns bounds and estimates, as ``assumptions`` says."""
    chip, reduced, chips = chip_of(row), reduction(row), row["chips"]
    sent = 2 * (chips - 1) / chips * (reduced.gradient_bytes + reduced.other_bytes)
    least = 1e3 * row["product_flops"] / chip.flops
    has_cycles = row["cycles"] is not None and row["effort"] >= 0
    cycles = max(least, 1e3 * row["cycles"] / chip.clock) if has_cycles else None
    all_links, one_link = 1e3 * sent / (chip.links * chip.link), 1e3 * sent / chip.link
    longest = least if cycles is None else cycles
    scaling = least / (least + one_link), longest / (longest + all_links)
    return Estimate(least, cycles, (all_links, one_link), scaling)
