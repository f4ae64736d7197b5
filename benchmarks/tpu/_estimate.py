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


class Estimate(NamedTuple):
    """Times of a step in milliseconds, and its scaling.

    Attributes:
        least_ms: lower bound.
        cycles_ms: by the compiler's cycles; None where there are none, or the effort was less than a run's.
        reduce_ms: all-reduce over all links, and over one.
        scaling: lower and upper end.
    """

    least_ms: float
    cycles_ms: float | None
    reduce_ms: tuple[float, float]
    scaling: tuple[float, float]


def assumptions() -> str:
    """Returns what the estimates rest on, as a Markdown list."""
    links = ", ".join(
        f"{name}: {chip.links} links of {chip.link / 1e9:.0f} GB/s in each direction"
        for name, chip in CHIPS.items()
    )
    return ASSUMPTIONS.format(links=links)


def used_bytes(row: Mapping[str, Any]) -> int:
    """Returns the HBM of a chip that a step uses."""
    parts = ("argument_bytes", "output_bytes", "temp_bytes", "code_bytes")
    return sum(row[part] for part in parts) - row["alias_bytes"]


def free_bytes(row: Mapping[str, Any]) -> int:
    """Returns the HBM of a chip that a step leaves free."""
    return _chip(row).available - used_bytes(row)


def gradient_reductions(row: Mapping[str, Any]) -> list[int]:
    """Returns the bytes of the all-reduces of gradients: those with at least a hundredth of all bytes."""
    sizes = [size for _, size in row["all_reduces"]]
    return [size for size in sizes if size >= sum(sizes) / 100]


def estimate_step(row: Mapping[str, Any]) -> Estimate:
    """Returns bounds and estimates, as ``assumptions`` says."""
    chip, chips, reduced = _chip(row), row["chips"], sum(size for _, size in row["all_reduces"])
    sent = 2 * (chips - 1) / chips * reduced
    least = 1e3 * row["product_flops"] / chip.flops
    has_cycles = row["cycles"] is not None and row["effort"] >= 0
    cycles = max(least, 1e3 * row["cycles"] / chip.clock) if has_cycles else None
    all_links, one_link = 1e3 * sent / (chip.links * chip.link), 1e3 * sent / chip.link
    longest = least if cycles is None else cycles
    scaling = least / (least + one_link), longest / (longest + all_links)
    return Estimate(least, cycles, (all_links, one_link), scaling)


def _chip(row: Mapping[str, Any]) -> Chip:
    """Returns the chip that a row's program is for."""
    return CHIPS[row["topology"].partition(":")[0]]
