"""python -m benchmarks.scaling.report [FOLDER]: renders faults.json and scaling.json as ROBUSTNESS.md."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks._markdown import fill, read_result, table, write_page
from benchmarks._program import RESULTS, render_files
from benchmarks.scaling._processes import PHASES
from benchmarks.scaling.measure import MAPPINGS

REPORT, PAGE = "python -m benchmarks.scaling.report", "ROBUSTNESS.md"
PROGRAMS = {"faults": "python -m tests.slow.faults", "scaling": "python -m benchmarks.scaling.measure"}
Result = Mapping[str, Any]
OTHER_DEVICES = """

"{fault}": with twice as many images each the global batch is the same, and only rounding differs. The
loss of the first step differs by {first_loss_differs:.1e} (relative), that of the last, {later} steps
later, by {last_loss_differs:.1e}; parameters in the end by at most {parameters_differ:.1e} of the largest
of their array (median over arrays {parameters_differ_median:.1e})."""
LAYOUT = "{processes} x {devices_per_process}"


def read(folder: Path = RESULTS) -> list[Result]:
    """Reads faults.json and scaling.json; raises InputError if one is missing."""
    return [read_result(folder / f"{name}.json", program) for name, program in PROGRAMS.items()]


def page(faults: Result, scaling: Result) -> str:
    """Returns the whole page."""
    kills, compared, rows = faults["kills"], faults["kills"]["comparison"], scaling["rows"]
    good = (f"Its {sum(compared['arrays'].values())} arrays (parameters, optimizer state, counters), its "
            f"{compared['losses']} logged losses and {compared['evaluations']} evaluations equal those of "
            "an undisturbed run bit for bit.")  # fmt: skip
    lost = sum(kill["steps_lost"] for kill in kills["kills"])
    resumed = [row for row in faults["single"]["rows"] if "steps" in row]
    return fill(
        PAGE, kills=_about(kills, good), single=_about(faults["single"]), scaling=_about(scaling),
        number=len(kills["kills"]), lost=lost, redone=kills["steps_made"] - kills["steps_needed"] - lost,
        minutes=kills["seconds"] / 60, undisturbed=kills["undisturbed"]["seconds"] / 60,
        kills_table=_kills_table(kills["kills"]), damages_table=_damages_table(kills["damaged"]),
        single_table=_single_table(faults["single"]["rows"]),
        resumed="".join(OTHER_DEVICES.format(**row, later=row["steps"] - 1) for row in resumed),
        parameters=rows[0]["parameters"], bytes=4 * rows[0]["parameters"],
        allowed=[scaling["rounding"][steps] for steps in "13"],
        updates_table=_updates_table(rows), speed_table=_speed_table(rows, scaling["images_per_device"]),
    )  # fmt: skip


def _about(result: Result, good: str = "Everything was as expected.") -> Result:
    """Adds what all sections show: the command and where it ran, and failures or the sentence for none."""
    failures = "\n".join(["Failures:", "", *(f"- {_plain(failure)}" for failure in result["failures"])])
    about = f"`{result['command']}`, {result['hardware']}, jax {result['versions']['jax']}"
    return {**result, "about": about, "verdict": failures if result["failures"] else good}


def _kills_table(kills: Sequence[Result]) -> str:
    """Renders the kills by signal and phase."""
    heads = ("signal", "killed during", "kills", "exit status", "steps lost: most", "mean",
             "seconds to the exit: median", "most")  # fmt: skip
    groups = {}
    for kill in sorted(kills, key=lambda kill: (kill["signal"], PHASES.index(kill["phase"]))):
        groups.setdefault((kill["signal"], kill["phase"]), []).append(kill)

    def lines() -> Iterator[tuple[object, ...]]:
        for group, here in groups.items():
            lost, seconds = ([kill[key] for kill in here] for key in ("steps_lost", "seconds_to_exit"))
            counts = Counter(kill["status"] for kill in here)
            several = " ({})" if len(counts) > 1 else ""
            exits = ", ".join(f"{status}{several.format(times)}" for status, times in counts.items())
            exit_times = f"{median(seconds):.1f}", f"{max(seconds):.1f}"
            yield (*group, len(here), exits, max(lost), f"{mean(lost):.1f}", *exit_times)

    return table(heads, lines())


def _damages_table(damages: Sequence[Result]) -> str:
    lines = [
        (f"`{Path(each['file']).name[:12]}` of step {each['step']}", f"{each['bytes']:,}", each["how"],
         _yes(each["warned"]), f"step {each['resumed_at']}")
        for each in damages
    ]  # fmt: skip
    return table(("file", "bytes", "damage", "warned", "resumed from"), lines)


def _single_table(rows: Sequence[Result]) -> str:
    lines = [
        (row["fault"], ", ".join(map(str, row["status"])) or "-",
         "<br>".join(map(_plain, row["messages"])) or "-", f"{row['seconds']:g}" if "seconds" in row else "",
         _plain("; ".join(row["failures"])) or "yes")
        for row in rows
    ]  # fmt: skip
    return table(("fault", "exit status", "message", "seconds", "as expected"), lines)


def _updates_table(rows: Sequence[Result]) -> str:
    names = ("median_1", "difference_1", "median_3", "difference_3")
    lines = [
        (LAYOUT.format(**row), mapping, *(f"{row[mapping][name]:.1e}" for name in names),
         _yes(row["same_bits"]), row[mapping]["all_reduces"], f"{row[mapping]['bytes']:,}",
         ", ".join(map(str, row[mapping]["compiled"].values())))
        for row in rows for mapping in MAPPINGS
    ]  # fmt: skip
    heads = ("processes x devices", "mapping", "after 1 step: median", "most", "after 3: median", "most",
             "pmap equals shard_map", "all-reduces a step", "bytes", "programs")  # fmt: skip
    return table(heads, lines)


def _speed_table(rows: Sequence[Result], images_per_device: int) -> str:
    kinds = {"median_ms": "median", "least_ms": "minimum", "busy_ms": "busy"}
    columns = [f"{mapping}: {kind}" for mapping in MAPPINGS for kind in kinds.values()]
    lines = [
        (LAYOUT.format(**row), row["processes"] * row["devices_per_process"] * images_per_device,
         *(row[mapping]["speed"][kind] for mapping in MAPPINGS for kind in kinds))
        for row in rows if "speed" in row["pmap"]
    ]  # fmt: skip
    return table(("processes x devices", "images a step", *columns), lines)


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _plain(text: str) -> str:
    """Returns a text on one line that fits into a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def render(folder: Path = RESULTS) -> list[Path]:
    """Writes the page beside the result files; returns its path."""
    return write_page(folder / PAGE, page(*read(folder)))


def main(arguments: list[str] | None = None) -> int:
    """Renders the page; returns the exit status."""
    return render_files(REPORT, render, arguments)


if __name__ == "__main__":
    sys.exit(main())
