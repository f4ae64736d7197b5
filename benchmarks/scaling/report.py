"""python -m benchmarks.scaling.report [FOLDER]: renders faults.json and scaling.json as ROBUSTNESS.md."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.scaling.measure import MAPPINGS, RESULTS
from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.errors import InputError
from tests.slow.training_process import PHASES

PAGE = "ROBUSTNESS.md"
Result = Mapping[str, Any]
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


def read(folder: Path = RESULTS) -> tuple[Result, Result]:
    """Reads faults.json and scaling.json; raises InputError if one is missing."""
    found = []
    for name, program in (("faults", "tests.slow.faults"), ("scaling", "benchmarks.scaling.measure")):
        try:
            found.append(json.loads((folder / f"{name}.json").read_text()))
        except (OSError, ValueError) as error:
            message = f"{folder / f'{name}.json'} cannot be read: run `python -m {program}` first"
            raise InputError(message) from error
    return found[0], found[1]


def render(faults: Result, scaling: Result) -> str:
    """Returns the whole page."""
    source = "Rendered by `python -m benchmarks.scaling.report` from `faults.json` and `scaling.json` here."
    head = f"# Fault tolerance and scaling\n\n{source}"
    parts = [head, _killed(faults["kills"]), _single(faults["single"]), *_scaling(scaling)]
    return "\n\n".join(parts) + "\n"


def _about(result):
    names = ("command", "hardware")
    return {name: result[name] for name in names} | {"jax": result["versions"]["jax"]}


def _killed(result):
    kills, compared, damaged = result["kills"], result["comparison"], result["damaged"]
    made, needed = result["steps_made"], result["steps_needed"]
    lost = sum(kill["steps_lost"] for kill in kills)
    good = (f"Its {sum(compared['arrays'].values())} arrays (parameters, optimizer state, counters), its "
            f"{compared['losses']} logged losses and {compared['evaluations']} evaluations equal those of "
            "an undisturbed run bit for bit.")  # fmt: skip
    heads = ("signal", "killed during", "kills", "exit status", "steps lost: most", "mean",
             "seconds to the exit: median", "most")  # fmt: skip
    damages = [
        (f"`{Path(each['file']).name[:12]}` of step {each['step']}", f"{each['bytes']:,}", each["how"],
         "yes" if each["warned"] else "no", f"step {each['resumed_at']}")
        for each in damaged
    ]  # fmt: skip
    return KILLED.format(
        **_about(result), **result["run"], number=len(kills), verdict=_verdict(result["failures"], good),
        made=made, needed=needed, lost=lost, redone=made - needed - lost, starts=result["starts"],
        minutes=result["seconds"] / 60, undisturbed=result["undisturbed"]["seconds"] / 60,
        table=_table(heads, _kills_by_phase(kills)),
        damages=_table(("file", "bytes", "damage", "warned", "resumed from"), damages),
    )  # fmt: skip


def _kills_by_phase(kills):
    for signal in sorted({kill["signal"] for kill in kills}):
        for phase in PHASES:
            here = [kill for kill in kills if (kill["signal"], kill["phase"]) == (signal, phase)]
            if here:
                lost, seconds = ([kill[key] for kill in here] for key in ("steps_lost", "seconds_to_exit"))
                counts = Counter(kill["status"] for kill in here).items()
                several = len(counts) > 1
                exits = [f"{status} ({times})" if several else f"{status}" for status, times in counts]
                yield (signal, phase, len(here), ", ".join(exits), max(lost), f"{mean(lost):.1f}",
                       f"{median(seconds):.1f}", f"{max(seconds):.1f}")  # fmt: skip


def _single(result):
    cells = [
        (row["fault"], ", ".join(map(str, row["status"])) or "-",
         "<br>".join(map(_plain, row["said"])) or "-",
         f"{row['seconds']:g}" if "seconds" in row else "", _plain("; ".join(row["failures"])) or "yes")
        for row in result["rows"]
    ]  # fmt: skip
    table = _table(("fault", "exit status", "message", "seconds", "as expected"), cells)
    verdict = _verdict(result["failures"], "Everything was as expected.")
    resumed = [row for row in result["rows"] if "steps" in row]
    notes = [OTHER_DEVICES.format(**row, later=row["steps"] - 1) for row in resumed]
    return SINGLE.format(**_about(result), verdict=verdict, table=table) + "".join(notes)


def _scaling(result):
    rows, allowed, layout = result["rows"], result["rounding"], "{processes} x {devices_per_process}"
    pairs = [(row, mapping) for row in rows for mapping in MAPPINGS]
    names = ("median_1", "difference_1", "median_3", "difference_3")
    cells = [
        (layout.format(**row), mapping, *(f"{row[mapping][name]:.1e}" for name in names),
         "yes" if row["same_bits"] else "no", row[mapping]["all_reduces"], f"{row[mapping]['bytes']:,}",
         ", ".join(map(str, row[mapping]["compiled"].values())))
        for row, mapping in pairs
    ]  # fmt: skip
    heads = ("processes x devices", "mapping", "after 1 step: median", "most", "after 3: median", "most",
             "pmap equals shard_map", "all-reduces a step", "bytes", "programs")  # fmt: skip
    parameters = rows[0]["parameters"]
    yield SCALING.format(
        **_about(result), images=result["images"], one=allowed["1"], three=allowed["3"],
        parameters=parameters, bytes=4 * parameters, table=_table(heads, cells),
        verdict=_verdict(result["failures"], "Everything was as expected."),
    )  # fmt: skip
    kinds = {"median_ms": "median", "least_ms": "minimum", "busy_ms": "busy"}
    columns = [f"{mapping}: {kind}" for mapping in MAPPINGS for kind in kinds.values()]
    heads = ("processes x devices", "images a step", *columns)
    cells = [
        (layout.format(**row), row["processes"] * row["devices_per_process"] * result["images_per_device"],
         *(row[mapping]["speed"][kind] for mapping in MAPPINGS for kind in kinds))
        for row in rows if "speed" in row["pmap"]
    ]  # fmt: skip
    if cells:
        images, steps = result["images_per_device"], result["steps"]
        yield SPEED.format(images_per_device=images, steps=steps, table=_table(heads, cells))


def _verdict(failures: Sequence[str], good: str) -> str:
    lines = [f"- {_plain(failure)}" for failure in failures]
    return "\n".join(["Failures:", "", *lines]) if failures else good


def _plain(text: str) -> str:
    """Returns a text on one line that fits into a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(arguments: list[str]) -> int:
    """Writes the page beside the result files; returns the exit status."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else RESULTS
    try:
        write_text(folder / PAGE, render(*read(folder)))
    except InputError as error:
        print(f"python -m benchmarks.scaling.report: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {folder / PAGE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
