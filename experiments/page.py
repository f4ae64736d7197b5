"""RESULTS.md and its plots: the paper's figures beside those that were measured, from the result files alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.results_io import COSTS, FOLDER, measured
from experiments.rows import TABLES, Row, Table, systems
from experiments.scales import NARROW, ONE_MAP, SCALES, STAND_INS, Scale
from mrcnn_jax.atomic_io import replacing

PAGE = Path(__file__).parent / "RESULTS.md"
KINDS = {"segm": "mask", "bbox": "box", "keypoints": "keypoint", "cityscapes_val": "Cityscapes val", "cityscapes_test": "Cityscapes test"}
NOT_RUN = "not run"
PEAK_SHARE = 0.2
COSTS_ABOUT = """\
`python -m experiments.costs` compiles each system's train step, bfloat16, for {slices}, on a machine without a TPU: memory is the compiler's account. "At least" is the
time of convolutions and matrix products at the chip's published peak. "Expected" assumes {peak:.0%} of that peak, which is about what the compiler's own cycles say of
R50-FPN ([TPU.md](../benchmarks/results/TPU.md)): an estimate, not a measurement. Chip-hours divided by the number of chips are hours on the slice.
A system whose proposals come from an RPN needs that run first; evaluation is not in it."""
SMALL = """\
What is small is so for all rows of a table alike: smaller images, and with them anchors, proposals and sampled RoIs; narrow networks, in which fewer layers stand in for more, with group norm
in place of frozen batch norm; batch, optimiser and schedule. As nothing is pretrained, a detector's backbone starts from that of the RPN that proposes for it. There stand
{stand_ins}. Set are {narrow}; for C4 and C5 also {one_map}."""
ABOUT = """\
Made by `python -m experiments.report` from `experiments/tables/paper.json` and the result files of `experiments.run` alone. AP in percent, measured figures with their difference from
the paper's in brackets and ± their standard deviation over seeds. The paper's figures are of COCO, and the small runs' of other data, so what can be compared with them is what changes from row to row.

All rows follow the recipe {recipes}: the paper's own experiments, in which an RPN is trained first, by itself; not that of the code released later (Detectron 1x). Of the settings, NMS
at 0.3 and those of tables 8 and 9 were not checked against a copy of the paper."""


class Figures(NamedTuple):
    """One figure of a row over its seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float:
        """Over the seeds; not a number of a single one."""
        return stdev(self.values) if len(self.values) > 1 else nan

    def __str__(self):
        return f"{self.mean:.1f}" + (f" ± {self.deviation:.1f}" if len(self.values) > 1 else "")


Results = Mapping[str, Mapping[int, Mapping[str, Any]]]  # by system, then seed


def results_of(table: Table, scale: Scale, folder: Path = FOLDER) -> dict[str, dict[int, dict[str, Any]]]:
    """By row, then seed; rows that were not run are missing."""
    found = {name: measured(scale.name, system.name, folder) for name, system in table.systems().items()}
    return {name: results for name, results in found.items() if results}


def figures_of(results: Mapping[int, Mapping[str, Any]], kind: str, name: str) -> Figures | None:
    """A figure of a row; None where it was not measured."""
    values = tuple(value for result in results.values() if (value := result["metrics"].get(kind, {}).get(name)) is not None)
    return Figures(values) if values else None


def page(folder: Path = FOLDER) -> str:
    """The page, with links to the plots beside it."""
    parts = [
        "# The paper's tables",
        ABOUT.format(recipes=" or ".join(sorted({f'"{system.recipe}"' for system in systems().values()}))),
        _scales(),
    ]
    for table in TABLES.values():
        parts += section(table, folder)
    parts += made_by()
    if (folder / COSTS.name).exists():
        parts += costs(json.loads((folder / COSTS.name).read_text())["rows"])
    return "\n\n".join(parts) + "\n"


def _scales():
    lines = ["Scales:", ""]
    for scale in SCALES.values():
        lines.append(f"- `{scale.name}`: {scale.about}{_training(scale) if scale.small else ''}")
    stand_ins = "; ".join(f"{_network(stand_in)} for {name}" for name, stand_in in STAND_INS.items())
    lines += ["", SMALL.format(stand_ins=stand_ins, narrow=_settings(NARROW), one_map=_settings(ONE_MAP))]
    return "\n".join(lines)


def _training(scale):
    steps, *falls = scale.schedule
    rate = scale.changes["train.learning_rate"]
    return f" {steps:,} steps of {scale.images} images, with a learning rate of {rate} for 16 that falls after {' and '.join(f'{step:,}' for step in falls)}."


def _network(stand_in):
    return stand_in["name"] + (f" in {stand_in['groups']} groups" if "groups" in stand_in else "")


def _settings(changes):
    return ", ".join(f"`{name} {_word(value)}`" for name, value in changes.items())


def section(table: Table, folder: Path = FOLDER) -> Iterator[str]:
    """A table's part of the page."""
    paper, found = table.paper, {scale.name: results_of(table, scale, folder) for scale in SCALES.values()}
    run = [scale for scale in SCALES.values() if found[scale.name]]
    yield f"## {heading(table)}"
    yield table.claim
    for scale in run:
        yield f"At scale `{scale.name}`: {agreement(table, found[scale.name])}{duration(table, scale, folder)}"
        if scale.name in table.remarks:
            yield table.remarks[scale.name]
    for kind in dict.fromkeys(kind for figures in paper["rows"].values() for kind in figures):
        names = list(dict.fromkeys(name for figures in paper["rows"].values() for name in figures.get(kind, ())))
        yield _table(table, kind, names, run, found)
    if not run:
        yield f"{NOT_RUN[0].upper()}{NOT_RUN[1:]} at any scale: `python -m experiments.run {table.key} --scale paper`."
    for scale in run:
        yield f"![{heading(table)}, paper against {scale.name}]({picture(table, scale, folder).relative_to(place(folder).parent)})"


def heading(table: Table) -> str:
    """Name, title and split."""
    name = table.key if table.key == "agnostic" else f"Table {table.key.removeprefix('table')}"
    return f"{name}: {table.paper['title']} ({table.paper['split']}{'' if table.paper['verified'] else '; the figures are unverified'})"


def place(folder: Path = FOLDER) -> Path:
    """Where the page of a folder's results is: of one's own, beside them."""
    return PAGE if folder == FOLDER else folder / PAGE.name


def picture(table: Table, scale: Scale, folder: Path = FOLDER) -> Path:
    """The file of a plot."""
    return folder / scale.name / f"{table.key}.png"


def agreement(table: Table, found: Results) -> str:
    """What the runs say to what the paper's claim rests on, a sentence."""
    said, alike = [], 0
    for better, other, kind, name in table.compare:
        ours = [figures_of(found.get(row, {}), kind, name) for row in (better, other)]
        theirs = table.paper["rows"][better][kind][name] - table.paper["rows"][other][kind][name]
        if None not in ours:
            difference = difference_of(found[better], found[other], kind, name)
            alike += difference.mean * theirs > 0
            said.append(f"{better} against {other}: {_signed(difference.mean)}{_spread(difference)} {KINDS[kind]} {name} (paper {_signed(theirs)})")
    if said:
        said[0] = f"{alike} of {len(said)} differences in the paper's direction: {said[0]}"
    missing = [row for row in table.systems() if row not in found]
    said += [f"{NOT_RUN}: {', '.join(missing)}"] if missing else []
    return "; ".join(said) + "."


def duration(table: Table, scale: Scale, folder: Path = FOLDER) -> str:
    """How long all runs of a seed took, with those that they need, at the least; nothing without a seed of which none is missing or was cut short on the way."""
    systems = {each.name: each for system in table.systems().values() for each in (*system.needs(), system)}
    results = [measured(scale.name, name, folder) for name in systems]
    seeds = [seed for seed in results[0] if all("seconds" in result.get(seed, {}) for result in results)]
    if not seeds:
        return ""
    took = min(sum(result[seed]["seconds"] for result in results) for seed in seeds)
    hardware = ", or ".join(dict.fromkeys(result[seed]["hardware"] for result in results for seed in seeds))
    return f" All of one seed, {len(results)} runs, took {took / 60:.0f} minutes on {hardware}."


def difference_of(better: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]], kind: str, name: str) -> Figures:
    """Seed by seed where both rows have the same seeds, for these share data order and initial weights; otherwise of the means."""
    seeds = better.keys() & other.keys()
    if seeds:
        return Figures(tuple(better[seed]["metrics"][kind][name] - other[seed]["metrics"][kind][name] for seed in sorted(seeds)))
    return Figures((figures_of(better, kind, name).mean - figures_of(other, kind, name).mean,))


def _signed(value):
    return f"{value:+.1f}"


def _spread(figures):
    return f" ± {figures.deviation:.1f}" if len(figures.values) > 1 else ""


def _table(table, kind, names, run, found):
    heads = [f"{KINDS[kind]} figures", *(f"paper {name}" for name in names), *(f"{scale.name} {name}" for scale in run for name in names), "seeds", "system"]
    lines = [heads, ["---"] * len(heads)]
    for row in table.rows:
        reported = table.paper["rows"][row.name].get(kind, {})
        if not reported:
            continue
        cells = [_number(reported.get(name)) for name in names]
        for scale in run:
            results = found[scale.name].get(row.name, {})
            cells += [_measured(figures_of(results, kind, name), reported.get(name)) or (NOT_RUN if row.system and not results else "-") for name in names]
        seeds = ", ".join(f"{scale.name} {len(found[scale.name].get(row.name, {}))}" for scale in run) if row.system else "-"
        lines.append([row.name, *cells, seeds or "0", _what(row)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(figures, reported):
    if not figures:
        return None
    return str(figures) if reported is None else f"{figures} ({_signed(figures.mean - reported)})"


def _number(value):
    return "-" if value is None else f"{value:.1f}"


def _what(row: Row) -> str:
    if not row.system:
        return f"reported only: {row.note}"
    return f"`{row.system.name}`{f' ({row.note})' if row.note else ''}"


def made_by() -> Iterator[str]:
    """What the systems are."""
    yield "## The systems"
    yield "What is trained for the rows: a named experiment with fields changed, after what it needs."
    lines = []
    for system in systems().values():
        changes = "".join(f" --{name.replace('_', '-')} {_word(value)}" for name, value in system.changes.items())
        after = ", ".join(f"`{other.name}`" for other in system.needs())
        lines.append(f"- `{system.name}`: `{system.base}{changes}`{after and f', after {after}'}")
    yield "\n".join(lines)


def _word(value):
    return " ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def costs(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the systems cost at full size."""
    slices = ", ".join(dict.fromkeys(f"{row['topology']} ({row['chips']} chips)" for row in rows))
    yield "## What they cost at full size"
    yield COSTS_ABOUT.format(slices=slices, peak=PEAK_SHARE)
    heads = ["system", "images a chip", "TFLOP a step and chip", "GiB of a chip", "free", "step at least, ms", "steps", "chip-hours at least", "expected"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        about = [f"`{row['system']}`", f"{row['images_per_chip']}", f"{row['product_flops'] / 1e12:.2f}"]
        if "unavailable" in row:
            lines.append([*about, row["unavailable"], *["-"] * (len(heads) - len(about) - 1)])
            continue
        hours = row["least_ms"] * row["steps"] * row["chips"] / 3.6e6
        lines.append([*about, f"{row['used_bytes'] / 2**30:.1f}", f"{row['free_bytes'] / 2**30:.1f}", f"{row['least_ms']:.1f}", f"{row['steps']:,}", f"{hours:.0f}", f"{hours / PEAK_SHARE:.0f}"])
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- plots


def draw(folder: Path = FOLDER) -> list[Path]:
    """A plot for each table and scale of which there are results; returns the files."""
    files = []
    for table in TABLES.values():
        for scale in SCALES.values():
            if found := results_of(table, scale, folder):
                file = picture(table, scale, folder)
                with replacing(file) as unfinished:
                    plot(table, scale, found).savefig(unfinished, dpi=110)
                files.append(file)
    return files


def plot(table: Table, scale: Scale, found: Results) -> Figure:
    """AP of each row as bars, the paper's beside the measured ones, with a seed's dots and their standard deviation."""
    kinds = [kind for kind in dict.fromkeys(kind for figures in table.paper["rows"].values() for kind in figures) if any(figures_of(found[row], kind, "AP") for row in found)]
    figure = Figure(figsize=(1.8 + 4.2 * len(kinds), 1.1 + 0.55 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    rows = [row.name for row in table.rows if row.name in found][::-1]
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        places = range(len(rows))
        paper = [table.paper["rows"][row].get(kind, {}).get("AP") for row in rows]
        ours = [figures_of(found[row], kind, "AP") for row in rows]
        axis.barh([place + 0.2 for place in places], [value or 0 for value in paper], 0.36, color="#bbbbbb", label="paper, COCO")
        axis.barh([place - 0.2 for place in places], [figures.mean if figures else 0 for figures in ours], 0.36, color="#0072b2", label=scale.name,
                  xerr=[figures.deviation if figures else nan for figures in ours], error_kw={"elinewidth": 1, "capsize": 3})  # fmt: skip
        for place, figures in zip(places, ours, strict=True):
            if figures and len(figures.values) > 1:
                axis.plot(figures.values, [place - 0.2] * len(figures.values), "o", color="#d55e00", markersize=3)
        axis.set(yticks=list(places), xlabel=f"{KINDS[kind]} AP", xlim=(0, None))
        axis.set_yticklabels(rows if axis is figure.axes[0] else [])
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"{heading(table).partition(' (')[0]}", fontsize=10)
    return figure
