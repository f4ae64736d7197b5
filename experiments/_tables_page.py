"""The section of RESULTS.md on the paper's tables, made from paper.json and result files alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import _markdown
from benchmarks._program import option_words
from experiments._results import (
    COSTS,
    METRICS,
    REMARKS,
    TABLES_FOLDER,
    SeedResults,
    difference_of,
    figures_of,
    hardware_of,
    load_rows,
    load_seeds,
    paper_difference,
)
from experiments.rows import TABLES, Row, Table, all_systems
from experiments.scales import FCIS, NARROW, SCALES, SINGLE_MAP, STAND_INS, Scale

PEAK_SHARE = 0.2
INTRODUCTION = """\
The paper's figures are for COCO. The small scales use other data and narrow networks that start from scratch,
so the figures themselves cannot be compared with the paper's: compare the differences between rows. AP in
percent; ± is the standard deviation over seeds. A difference over several seeds is that of runs with the same
seed.

Mask R-CNN and Faster R-CNN follow the recipe of the paper's own experiments, in which the RPN is trained
first and separately, not that of the code released later; the others train it with everything else. NMS
at 0.3 and the settings of tables 8 and 9 were not checked against a copy of the paper."""
SMALL_SCALES = """\
A small scale changes all rows of a table alike: image size, and with it anchors, proposals and sampled
RoIs; narrow networks with fewer layers, and group norm in place of frozen batch norm; batch size,
optimizer and schedule. Nothing is pretrained, so a detector's backbone starts from that of its RPN.
Backbones: {stand_ins}. Fields: {narrow}; with C4 and C5 also {single_map}; with FCIS {fcis} instead."""
COSTS_TEXT = """\
`python -m experiments.costs` compiles the training step of each system, in bfloat16, for {slices}, on a
machine without a TPU. Memory is the compiler's account. "At least" is the time of convolutions and matrix
products at the chip's published peak; "expected" assumes {peak:.0%} of the peak, which is about what the
compiler's own cycle counts give for R50-FPN ([TPU.md](../benchmarks/results/TPU.md)): an estimate, not a
measurement. Chip-hours divided by the number of chips are hours on the slice. The run of a separate RPN
and evaluation are not included."""

TableResults = Mapping[str, SeedResults]
"""Results of a table at a scale, by row."""


def tables_section(folder: Path = TABLES_FOLDER) -> Iterator[str]:
    """Yields the paragraphs of the section."""
    yield "## The paper's tables"
    yield INTRODUCTION
    yield from _scales()
    remarks = json.loads((folder / REMARKS.name).read_text()) if (folder / REMARKS.name).exists() else {}
    for table in TABLES.values():
        yield from _table(table, folder, remarks.get(table.key, {}))
    yield from _systems()
    if (folder / COSTS.name).exists():
        yield from _costs(json.loads((folder / COSTS.name).read_text())["rows"])


def heading(table: Table) -> str:
    """Returns the number and title of a table."""
    is_numbered = table.key.startswith("table")
    return f"Table {table.key.removeprefix('table')}: {table.title}" if is_numbered else table.title


def plot_file(table: Table, scale: Scale, folder: Path = TABLES_FOLDER) -> Path:
    """Returns the path of the plot of a table at a scale."""
    return folder / scale.name / f"{table.key}.png"


def shown_scales(table: Table, folder: Path = TABLES_FOLDER) -> dict[Scale, TableResults]:
    """Returns the results of a table by scale, for the scales at which two rows can be compared."""
    found = {scale: load_rows(table, scale.name, folder) for scale in SCALES.values()}
    return {
        scale: rows
        for scale, rows in found.items()
        if any(difference_of(rows, each) for each in table.comparisons)
    }


def agreement(table: Table, results: TableResults) -> str:
    """Returns how many differences between rows have the sign of the paper's, in one phrase."""
    pairs = [(difference_of(results, each), paper_difference(table, each)) for each in table.comparisons]
    agree = [ours.mean * paper > 0 for ours, paper in pairs if ours]
    return f"{sum(agree)} of {len(agree)} differences have the sign of the paper's"


def differences(table: Table, scales: Mapping[Scale, TableResults]) -> str:
    """Returns the table of differences between rows, the paper's next to those of each scale."""
    rows = []
    for each in table.comparisons:
        ours = [difference_of(results, each) for results in scales.values()]
        if any(ours):
            cells = [f"{one:+.1f}" if one else "-" for one in ours]
            name, paper = f"{METRICS[each.metrics]} {each.figure}", f"{paper_difference(table, each):+.1f}"
            rows.append([each.better, each.other, name, paper, *cells])
    heads = ["row", "compared with", "gain in", "paper", *(f"`{scale.name}`" for scale in scales)]
    return _markdown.table(heads, rows)


def _scales() -> Iterator[str]:
    lines = []
    for scale in SCALES.values():
        lines.append(f"- `{scale.name}`: {scale.description}{_schedule(scale) if scale.is_small else ''}")
    yield "\n".join(lines)
    stand_ins = ", ".join(f"{_network(used)} for {name}" for name, used in STAND_INS.items())
    fields = {"narrow": _fields(NARROW), "single_map": _fields(SINGLE_MAP), "fcis": _fields(FCIS)}
    yield SMALL_SCALES.format(stand_ins=stand_ins, **fields)


def _schedule(scale: Scale) -> str:
    steps, *decays = scale.schedule
    at = " and ".join(f"{step:,}" for step in decays)
    rate = scale.changes["train.learning_rate"]
    return f" {steps:,} steps of {scale.images} images; learning rate {rate} per 16 images, decayed at {at}."


def _network(network: Mapping[str, Any]) -> str:
    return network["name"] + (f" with {network['groups']} groups" if "groups" in network else "")


def _fields(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"`{' '.join(option_words(*change)).removeprefix('--')}`" for change in changes.items())


def _table(table: Table, folder: Path, remarks: Mapping[str, str]) -> Iterator[str]:
    """Yields the paragraphs of one table."""
    scales = shown_scales(table, folder)
    yield f"### {heading(table)}"
    yield f"{table.claim} ({table.split}{'' if table.verified else '; the figures are unverified'})"
    for scale, results in scales.items():
        runs = _duration(table, scale, folder)
        yield f"`{scale.name}`: {agreement(table, results)}{runs}. {remarks.get(scale.name, '')}".rstrip()
    if scales:
        yield differences(table, scales)
    else:
        yield f"Not run yet: `python -m experiments.run {table.key} --scale paper`."
    trainable = table.systems().keys()
    complete = {scale: results for scale, results in scales.items() if results.keys() == trainable}
    for kind in dict.fromkeys(kind for row in table.rows for kind in row.metrics):
        yield _figures(kind, table.rows, complete)
        for scale, results in scales.items():
            if scale not in complete:
                rows = [row for row in table.rows if row.name in results]
                yield _figures(kind, rows, {scale: results})
    for scale in scales:
        plot = plot_file(table, scale, folder).relative_to(page_path(folder).parent)
        yield f"![{heading(table)}: the paper and {scale.name}]({plot})"
    if "pictures" in remarks:
        yield remarks["pictures"]


def page_path(folder: Path = TABLES_FOLDER) -> Path:
    """Returns the path of the page: experiments/RESULTS.md, or RESULTS.md in any other folder of results."""
    return Path(__file__).with_name("RESULTS.md") if folder == TABLES_FOLDER else folder / "RESULTS.md"


def _figures(kind: str, rows: Sequence[Row], scales: Mapping[Scale, TableResults]) -> str:
    """Returns the figures of one kind: a line per row, the paper's and those of each scale."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics.get(kind, ())))
    sources = ["paper", *(f"`{scale.name}`" for scale in scales)]
    heads = [f"row ({METRICS[kind]})", *(f"{source} {name}" for source in sources for name in names)]
    lines = []
    for row in rows:
        if kind not in row.metrics:
            continue
        cells = [_cell(row.metrics[kind].get(name)) for name in names]
        for results in scales.values():
            cells += [_cell(figures_of(results.get(row.name, {}), kind, name)) for name in names]
        seeds = [str(len(results[row.name])) if row.name in results else "-" for results in scales.values()]
        lines.append([row.name, *cells, *([", ".join(seeds)] if scales else []), _origin(row)])
    return _markdown.table([*heads, *(["seeds"] if scales else []), "system"], lines)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"


def _origin(row: Row) -> str:
    if not row.system:
        return f"paper only: {row.note}"
    return f"`{row.system.name}`{f' ({row.note})' if row.note else ''}"


def _duration(table: Table, scale: Scale, folder: Path) -> str:
    """Returns the time of all runs of one seed, RPNs included; empty if no seed has them all timed."""
    systems = {each.name for system in table.systems().values() for each in (*system.prerequisites(), system)}
    results = [load_seeds(scale.name, name, folder) for name in all_systems() if name in systems]
    seeds = [seed for seed in results[0] if all("seconds" in result.get(seed, {}) for result in results)]
    if not seeds:
        return ""
    seconds = min(sum(result[seed]["seconds"] for result in results) for seed in seeds)
    hardware = " or ".join(dict.fromkeys(hardware_of(result[seed]) for result in results for seed in seeds))
    return f". The {len(results)} runs of one seed took {seconds / 60:.0f} minutes on {hardware}"


def _systems() -> Iterator[str]:
    yield "### Systems"
    rows = []
    for system in all_systems().values():
        words = [system.base, *(word for change in system.changes.items() for word in option_words(*change))]
        after = ", ".join(f"`{other.name}`" for other in system.prerequisites())
        rows.append([f"`{system.name}`", f"`{' '.join(words)}`", after or "-"])
    yield _markdown.table(["system", "preset and changed fields", "trained after"], rows)


def _costs(costs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    slices = ", ".join(dict.fromkeys(f"{row['topology']} ({row['chips']} chips)" for row in costs))
    yield "### Cost at full size"
    yield COSTS_TEXT.format(slices=slices, peak=PEAK_SHARE)
    heads = ["system", "images per chip", "TFLOP per step and chip", "GiB used", "GiB free",
             "step at least, ms", "steps", "chip-hours at least", "chip-hours expected"]  # fmt: skip
    lines = []
    for row in costs:
        line = [f"`{row['system']}`", f"{row['images_per_chip']}", f"{row['product_flops'] / 1e12:.2f}"]
        if "unavailable" in row:
            line += [row["unavailable"], *["-"] * (len(heads) - len(line) - 1)]
        else:
            hours = row["least_ms"] * row["steps"] * row["chips"] / 3.6e6
            line += [f"{row[name] / 2**30:.1f}" for name in ("used_bytes", "free_bytes")]
            row_end = [f"{row['least_ms']:.1f}", f"{row['steps']:,}", f"{hours:.0f}"]
            line += [*row_end, f"{hours / PEAK_SHARE:.0f}"]
        lines.append(line)
    yield _markdown.table(heads, lines)
