"""python -m benchmarks.scaling.report [FOLDER]: renders faults.json and scaling.json as ROBUSTNESS.md."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks._markdown import table
from benchmarks._program import RESULTS, ReportOptions, write_files
from benchmarks.scaling.measure import MAPPINGS
from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.errors import InputError
from tests.slow.training_process import PHASES

REPORT, PAGE = "python -m benchmarks.scaling.report", "ROBUSTNESS.md"
PROGRAMS = {"faults": "tests.slow.faults", "scaling": "benchmarks.scaling.measure"}
Result = Mapping[str, Any]
HEAD = f"""\
# Fault tolerance and scaling

Rendered by `{REPORT}` from `faults.json` and `scaling.json` here."""
AS_EXPECTED = "Everything was as expected."
KILLED = """\
## Fault tolerance: a run that is killed again and again

`{command}`, {hardware}, jax {jax}. A run of {steps} steps on {devices} devices, with a checkpoint every
{checkpoint_every} and an evaluation every {evaluate_every} steps, was killed {number} times in a row and
restarted by the same command each time.

{verdict}

It made {made} steps where {needed} are needed: {lost} came after the newest checkpoint at a kill,
{redone} after the one that was used because a newer one was damaged. The {starts} starts took
{minutes:.0f} minutes, the undisturbed run {undisturbed:.1f}, on a machine that was shared with other
work; most of a start was tracing what had been compiled before.

{table}

SIGTERM saves the running step: no step is lost. While a program is compiled it is answered after the
first step, which is then saved; -15 would be a signal before the program's own first instruction. SIGKILL
costs the steps after the newest checkpoint: at most {checkpoint_every}, or twice as many while one is
being written.

Between two starts the largest file of the newest checkpoint was damaged:

{damages}"""
SINGLE = """\
## Single faults

`{command}`, {hardware}, jax {jax}. Each fault in a run of its own, which was taken to its end afterwards
where it can resume, and compared with the undisturbed one bit for bit. Of two processes both exit
statuses are given, and the seconds until the other one, or both, had ended. RUN is the run's directory.
Exit statuses of `mrcnn train`: 0 finished; 1 failed, and would fail again; 2 invalid input; 75 repeat the
command; 130 Ctrl-C; -9 and -15 ended by the signal itself.

{verdict}

{table}"""
OTHER_DEVICES = """

"{fault}": with twice as many images each the global batch is the same, and only rounding differs. The
loss of the first step differs by {first_loss_differs:.1e} (relative), that of the last, {later} steps
later, by {last_loss_differs:.1e}; parameters in the end by at most {parameters_differ:.1e} of the largest
of their array (median over arrays {parameters_differ_median:.1e})."""
SCALING = """\
## The same update on any number of devices

`{command}`, {hardware}, jax {jax}. {images} images a step; SGD with momentum and a clipped gradient,
float32, images with different numbers of objects, some without any. Differences of parameters from those
of a single device are relative to the largest update in their array: median and maximum over arrays.
Allowed are {one:g} after one step, which is the rounding of a parameter that is far larger than its
update, and {three:g} after three, where a decision that depends on rounding may differ. pmap and
shard_map are compared bit for bit.

{verdict}

{table}

The model has {parameters:,} parameters, {bytes:,} bytes in float32, which are communicated: one
all-reduce sums gradients and losses, the other one the counts that normalise the losses. "Programs" were
compiled for landscape and for portrait images over eight steps with no objects, with some, and with all
slots filled."""
SPEED = """\
## Weak scaling on virtual devices

{images_per_device} images on each device, {steps} steps, milliseconds per image: median and minimum of
the wall time, and the time that all cores were busy. The devices share the cores of one machine, on which
other programs ran too: at best an image takes as long on many devices as on few, and the rest is the cost
of distributing the work; processes, unlike devices of one process, communicate through sockets and wait
for each other's turn on a core. The speed of as many real devices cannot be seen here.

{table}"""


def read(folder: Path = RESULTS) -> list[Result]:
    """Reads faults.json and scaling.json; raises InputError if one is missing."""
    found = []
    for path, program in ((folder / f"{name}.json", PROGRAMS[name]) for name in PROGRAMS):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: run `python -m {program}` first") from error
    return found


def page(faults: Result, scaling: Result) -> str:
    """Returns the whole page."""
    return "\n\n".join([HEAD, _killed(faults["kills"]), _single(faults["single"]), *_scaling(scaling)]) + "\n"


def _about(result: Result, good: str) -> dict[str, str]:
    """Returns what all sections show: command, hardware, version, and failures or the sentence for none."""
    failures = "\n".join(["Failures:", "", *(f"- {_plain(failure)}" for failure in result["failures"])])
    about = {name: result[name] for name in ("command", "hardware")} | {"jax": result["versions"]["jax"]}
    return about | {"verdict": failures if result["failures"] else good}


def _killed(result: Result) -> str:
    """Returns the section of the run that is killed again and again."""
    kills, compared = result["kills"], result["comparison"]
    made, needed = result["steps_made"], result["steps_needed"]
    lost = sum(kill["steps_lost"] for kill in kills)
    good = (f"Its {sum(compared['arrays'].values())} arrays (parameters, optimizer state, counters), its "
            f"{compared['losses']} logged losses and {compared['evaluations']} evaluations equal those of "
            "an undisturbed run bit for bit.")  # fmt: skip
    heads = ("signal", "killed during", "kills", "exit status", "steps lost: most", "mean",
             "seconds to the exit: median", "most")  # fmt: skip
    damages = [
        (f"`{Path(each['file']).name[:12]}` of step {each['step']}", f"{each['bytes']:,}", each["how"],
         _yes(each["warned"]), f"step {each['resumed_at']}")
        for each in result["damaged"]
    ]  # fmt: skip
    return KILLED.format(
        **_about(result, good), **result["run"], number=len(kills),
        made=made, needed=needed, lost=lost, redone=made - needed - lost, starts=result["starts"],
        minutes=result["seconds"] / 60, undisturbed=result["undisturbed"]["seconds"] / 60,
        table=table(heads, _kills_by_phase(kills)),
        damages=table(("file", "bytes", "damage", "warned", "resumed from"), damages),
    )  # fmt: skip


def _kills_by_phase(kills: Sequence[Result]) -> Iterator[tuple[object, ...]]:
    """Yields the cells of each signal and phase."""
    groups = {}
    for kill in sorted(kills, key=lambda kill: (kill["signal"], PHASES.index(kill["phase"]))):
        groups.setdefault((kill["signal"], kill["phase"]), []).append(kill)
    for group, here in groups.items():
        lost, seconds = ([kill[key] for kill in here] for key in ("steps_lost", "seconds_to_exit"))
        counts = Counter(kill["status"] for kill in here)
        several = " ({})" if len(counts) > 1 else ""
        exits = [f"{status}{several.format(times)}" for status, times in counts.items()]
        yield (*group, len(here), ", ".join(exits), max(lost), f"{mean(lost):.1f}",
               f"{median(seconds):.1f}", f"{max(seconds):.1f}")  # fmt: skip


def _single(result: Result) -> str:
    """Returns the section of single faults."""
    cells = [
        (row["fault"], ", ".join(map(str, row["status"])) or "-",
         "<br>".join(map(_plain, row["said"])) or "-", f"{row['seconds']:g}" if "seconds" in row else "",
         _plain("; ".join(row["failures"])) or "yes")
        for row in result["rows"]
    ]  # fmt: skip
    faults = table(("fault", "exit status", "message", "seconds", "as expected"), cells)
    resumed = [row for row in result["rows"] if "steps" in row]
    notes = [OTHER_DEVICES.format(**row, later=row["steps"] - 1) for row in resumed]
    return SINGLE.format(**_about(result, AS_EXPECTED), table=faults) + "".join(notes)


def _scaling(result: Result) -> Iterator[str]:
    """Yields the sections of updates and, if steps were timed, of weak scaling."""
    rows, allowed, layout = result["rows"], result["rounding"], "{processes} x {devices_per_process}"
    names = ("median_1", "difference_1", "median_3", "difference_3")
    cells = [
        (layout.format(**row), mapping, *(f"{row[mapping][name]:.1e}" for name in names),
         _yes(row["same_bits"]), row[mapping]["all_reduces"], f"{row[mapping]['bytes']:,}",
         ", ".join(map(str, row[mapping]["compiled"].values())))
        for row in rows for mapping in MAPPINGS
    ]  # fmt: skip
    heads = ("processes x devices", "mapping", "after 1 step: median", "most", "after 3: median", "most",
             "pmap equals shard_map", "all-reduces a step", "bytes", "programs")  # fmt: skip
    parameters = rows[0]["parameters"]
    yield SCALING.format(
        **_about(result, AS_EXPECTED), images=result["images"], one=allowed["1"], three=allowed["3"],
        parameters=parameters, bytes=4 * parameters, table=table(heads, cells),
    )  # fmt: skip
    kinds = {"median_ms": "median", "least_ms": "minimum", "busy_ms": "busy"}
    columns = [f"{mapping}: {kind}" for mapping in MAPPINGS for kind in kinds.values()]
    cells = [
        (layout.format(**row), row["processes"] * row["devices_per_process"] * result["images_per_device"],
         *(row[mapping]["speed"][kind] for mapping in MAPPINGS for kind in kinds))
        for row in rows if "speed" in row["pmap"]
    ]  # fmt: skip
    if cells:
        yield SPEED.format(**result, table=table(("processes x devices", "images a step", *columns), cells))


def _yes(fact: bool) -> str:
    """Returns the word for a fact."""
    return "yes" if fact else "no"


def _plain(text: str) -> str:
    """Returns a text on one line that fits into a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def render(folder: Path) -> list[Path]:
    """Writes the page beside the result files; returns its path."""
    write_text(folder / PAGE, page(*read(folder)))
    return [folder / PAGE]


def main(arguments: list[str] | None = None) -> int:
    """Renders the page; returns the exit status."""
    return write_files(REPORT, ReportOptions, lambda options: render(options.folder), arguments)


if __name__ == "__main__":
    sys.exit(main())
