"""python -m benchmarks.scaling.report [FOLDER]: renders faults.json and scaling.json as ROBUSTNESS.md. Nothing on that page is written by hand."""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from mrcnn_jax.atomic_io import write_text
from mrcnn_jax.errors import InputError
from tests.slow.training_process import PHASES

RESULTS = Path(__file__).parents[1] / "results"
PAGE = "ROBUSTNESS.md"
FORMS = ("pmap", "shard_map")
EXITS = """\
RUN is the run's directory. Exit statuses of `mrcnn train`: 0 finished; 1 failed, and would fail again; 2 bad input; 75 to be started again; 130
Ctrl-C; -9 and -15 ended by the signal itself.
"""
Result = Mapping[str, Any]


def read(folder: Path = RESULTS) -> tuple[Result, Result]:
    """The content of both files; InputError where one is not there."""
    found = []
    for name, program in (("faults", "tests.slow.faults"), ("scaling", "benchmarks.scaling.measure")):
        try:
            found.append(json.loads((folder / f"{name}.json").read_text()))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / f'{name}.json'} cannot be read: run `python -m {program}` first") from error
    return found[0], found[1]


def page(faults: Result, scaling: Result) -> str:
    """The whole page."""
    parts = [
        "# Interruptions, faults and many devices",
        "Made by `python -m benchmarks.scaling.report` from `faults.json` and `scaling.json` beside it.",
        *_killed(faults["kills"]),
        *_single(faults["single"]),
        *_scaling(scaling),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


# ---------------------------------------------------------------- faults


def _killed(result):
    run, kills, compared = result["run"], result["kills"], result["comparison"]
    every, starts = run["checkpoint_every"], result["starts"]
    arrays, lost, made = sum(compared["arrays"].values()), sum(kill["steps_lost"] for kill in kills), result["steps_made"]
    good = f"""
Its {arrays} arrays (parameters, optimiser state, counters) and its {compared["losses"]} logged losses are, bit for bit, those of a run that was
left alone; so are its {compared["evaluations"]} evaluations.
"""
    return [
        "## A run that is killed again and again",
        f"""
`{result["command"]}`, {_about(result)}. A run of {run["steps"]} steps on {run["devices"]} devices, with a checkpoint every {every} and an
evaluation every
{run["evaluate_every"]} steps, was killed {len(kills)} times in a row, each time started again by the same command.
""",
        _verdict(result["failures"], good),
        f"""
It made {made} steps where {result["steps_needed"]} are needed: {lost} came after the newest checkpoint at a kill,
{made - result["steps_needed"] - lost} after the one that had to
be used because a newer one was damaged. The {starts} starts took {result["seconds"] / 60:.0f} minutes, the undisturbed run
{result["undisturbed"]["seconds"] / 60:.1f}, on a machine
that was shared with other work; most of a start is Python tracing what was compiled before.
""",
        _table(
            ("signal", "killed during", "kills", "exit status", "steps lost: most", "mean", "seconds to the exit: median", "most"), _by_phase(kills)
        ),
        f"""
SIGTERM saves the step that is running: no step is lost. While a program is compiled it is answered after the first step, which is then saved; -15
would be a signal that came before
the program's own first instruction. SIGKILL costs what came after the newest checkpoint: at most {every} steps, or twice that while one is being
written.
""",
        "Between two starts the largest file of the newest checkpoint was damaged:",
        _table(("file", "bytes", "damage", "warned", "gone on from"), [_damage(each) for each in result["damaged"]]),
    ]


def _damage(each):
    name = f"`{Path(each['file']).name[:12]}` of step {each['step']}"
    return name, f"{each['bytes']:,}", each["how"], "yes" if each["warned"] else "no", f"step {each['resumed_at']}"


def _by_phase(kills):
    rows = []
    for signal in sorted({kill["signal"] for kill in kills}):
        for phase in PHASES:
            here = [kill for kill in kills if (kill["signal"], kill["phase"]) == (signal, phase)]
            if here:
                lost, seconds = ([kill[name] for kill in here] for name in ("steps_lost", "seconds_to_exit"))
                statuses = Counter(kill["status"] for kill in here)
                exits = ", ".join(f"{status} ({number})" if len(statuses) > 1 else str(status) for status, number in statuses.items())
                rows.append((signal, phase, len(here), exits, max(lost), f"{mean(lost):.1f}", f"{median(seconds):.1f}", f"{max(seconds):.1f}"))
    return rows


def _single(result):
    cells = [
        (row["fault"], ", ".join(map(str, row["status"])) or "-", _cell(row["said"]), f"{row['seconds']:g}" if "seconds" in row else "",
         _plain("; ".join(row["failures"])) or "yes")
        for row in result["rows"]
    ]  # fmt: skip
    parts = [
        "## Single faults",
        f"""
`{result["command"]}`, {_about(result)}. Each in a run of its own which, where it can go on afterwards, was then taken to its end and compared with
the undisturbed one, bit for bit.
Of two processes both exit statuses are given, and the seconds until the other one, or both, had ended.
{EXITS}""",
        _verdict(result["failures"], "Everything was as it should be."),
        _table(("fault", "exit status", "what it said", "seconds", "as it should be"), cells),
    ]
    for row in result["rows"]:
        if "parameters_differ" in row:
            parts.append(f"""
"{row["fault"]}": each with twice as many images, so that the global batch is the same and only rounding differs. The loss of the first step differs
by
{row["first_loss_differs"]:.1e} of itself, that of the last, {row["steps"] - 1} steps later, by {row["last_loss_differs"]:.1e}; parameters in the
end by at most
{row["parameters_differ"]:.1e} of the largest of their array (median over arrays {row["parameters_differ_median"]:.1e}).
""")
    return parts


# ---------------------------------------------------------------- devices


def _scaling(result):
    rows, allowed = result["rows"], result["rounding"]
    parameters = rows[0]["parameters"]
    cells = [
        (_layout(row), form, *(f"{row[form][name]:.1e}" for name in ("median_1", "difference_1", "median_3", "difference_3")),
         "yes" if row["same_bits"] else "no",
         row[form]["all_reduces"], f"{row[form]['bytes']:,}", ", ".join(map(str, row[form]["compiled"].values())))
        for row in rows
        for form in FORMS
    ]  # fmt: skip
    heads = (
        "processes x devices",
        "form",
        "after 1 step: median",
        "most",
        "after 3: median",
        "most",
        "pmap and shard_map the same",
        "all-reduces a step",
        "bytes",
        "programs",
    )
    parts = [
        "## The same update on any number of devices",
        f"""
`{result["command"]}`, {result["hardware"]}, jax {result["versions"]["jax"]}. {result["images"]} images a step, on virtual CPU devices in one
process or in two; SGD with momentum
and a clipped gradient, float32, images with different numbers of objects, some without any. How far parameters are from those of a single device,
as a share of the largest
update in their array: of all arrays the median and the most. Allowed are {allowed["1"]:g} after one step, which is the rounding of a parameter that
is far larger than its update, and
{allowed["3"]:g} after three, for which a decision that hangs on rounding may go the other way. Whether pmap and shard_map are the same is judged
bit for bit.
""",
        _verdict(result["failures"], "Everything was as it should be."),
        _table(heads, cells),
        f"""
The model has {parameters:,} parameters, {4 * parameters:,} bytes in float32, which is what travels: one all-reduce adds up gradients and losses,
the other one the counts that
normalise the losses. "Programs" is what was compiled for landscape and for portrait images over eight steps with no objects, with some, and with
all slots filled.
""",
    ]
    timed = [row for row in rows if "speed" in row["pmap"]]
    if timed:
        kinds = {"median_ms": "median", "least_ms": "least", "busy_ms": "busy"}
        parts += [
            "## Weak scaling on virtual devices",
            f"""
{result["images_per_device"]} images on each device, {result["steps"]} steps, milliseconds for each image: median and least by the clock, and the
time that all cores were busy with it.
The devices share the cores of one machine, on which other programs ran too; so the best there can be is that an image takes as long on many devices
as on few, and what it takes
longer is the price of spreading the work; processes, unlike devices of one process, talk through sockets and wait for each other to be given a
core. How much faster many real devices are cannot be seen here.
""",
            _table(
                ("processes x devices", "images a step", *(f"{form}: {kind}" for form in FORMS for kind in kinds.values())),
                [
                    (_layout(row), row["processes"] * row["devices_per_process"] * result["images_per_device"],
                     *(row[form]["speed"][kind] for form in FORMS for kind in kinds))
                    for row in timed
                ],
            ),
        ]  # fmt: skip
    return parts


# ---------------------------------------------------------------- text


def _layout(row):
    return f"{row['processes']} x {row['devices_per_process']}"


def _about(result):
    return f"{result['hardware']}, jax {result['versions']['jax']}"


def _verdict(failures: Sequence[str], good: str) -> str:
    return good if not failures else "\n".join(["Not as it should be:", "", *(f"- {_plain(failure)}" for failure in failures)])


def _cell(said: Iterable[str]) -> str:
    return "<br>".join(_plain(sentence) for sentence in said) or "-"


def _plain(text: str) -> str:
    """On one line, within a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(arguments: list[str]) -> int:
    """Writes the page beside the files; returns the exit status."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    folder = Path(arguments[0]) if arguments else RESULTS
    try:
        text = page(*read(folder))
    except InputError as error:
        print(f"python -m benchmarks.scaling.report: {error}", file=sys.stderr)
        return 2
    write_text(folder / PAGE, text)
    print(f"Wrote {folder / PAGE}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
