"""Argument parsing, messages and progress bars, shared by the subcommands."""

import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mrcnn_jax import presets, signals
from mrcnn_jax.cli import PROGRAM, foreign_options
from mrcnn_jax.errors import InputError, printable

_SECONDS_BETWEEN_LINES = 30
Options = TypeVar("Options")
TrainedDirectory = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="DIR|NAME", help="Directory of a training run or of imported weights; or a name of "
                  "published weights (`mrcnn zoo`), an address https://..., or hf://owner/name."),
]
_REPHRASED = {
    r"^Error parsing (\S+): ": r"\1 ",
    r"invalid literal for int\(\) with base \d+: (.*)": r"must be a whole number, not \1",
    r"could not convert string to float: (.*)": r"must be a number, not \1",
    r"^Missing value for argument '(.*)'. Expected 1 values": r"\1 needs a value",
    r"^Missing value for argument '(.*)'. Expected (\d+) values": r"\1 needs \2 values",
    r"^invalid choice (.*) for argument '(.*)'. Expected one of \((.*?),?\)":
        lambda found: f"{found[2]} must be one of {_choices(found[3])}, not {found[1]}",
    r"no type matching \{None\}\|\{?((?:INT|FLOAT)(?: INT| FLOAT)*)\}? could be instantiated from \[(.*)\]":
        lambda found: f"must be {_numbers(found[1].split())}, not {found[2].replace(',', '')}",
}
_ABSENT = "'None'"
"""Choice of an option that has no value by default."""


def parse(
    options: type[Options], command: str, arguments: Sequence[str], default: Options | None = None,
    description: str | None = None,
) -> Options:  # fmt: skip
    """Parses the arguments of a subcommand into a dataclass; prints the help and exits where it is asked for.

    Args:
        options: the dataclass.
        command: name of the subcommand, with the words that precede the options.
        arguments: the rest of the command line.
        default: values of the options that are not given; by default the dataclass's own.
        description: first lines of the help; by default the dataclass's docstring.

    Raises:
        InputError: an argument is missing, unknown or invalid.
    """
    parsed, rest = parse_known(options, command, arguments, default, description)
    if rest:
        raise InputError(_refuse_unknown(options, command, rest, default))
    return parsed


def parse_known(
    options: type[Options], command: str, arguments: Sequence[str], default: Options | None = None,
    description: str | None = None,
) -> tuple[Options, list[str]]:  # fmt: skip
    """Does the same, but returns unknown arguments."""
    _refuse_empty_names(command, arguments)
    settings: dict[str, Any] = {"prog": f"{PROGRAM} {command}", "description": description}
    settings |= {} if default is None else {"default": default}
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            return tyro.cli(options, args=arguments, return_unknown_args=True, **settings)
    except SystemExit as exit:
        if not exit.code:
            raise
        error: BaseException | None = exit
        while error := error.__context__:  # the message of a dataclass, or of an option that we lack
            if isinstance(error, InputError):
                raise error from None
        names = [word.partition("=")[0] for word in arguments if re.match(r"--?[a-zA-Z]", word)]
        known = _known_options(options, settings)
        unknown = [name for name in names if "." not in name and name.replace("_", "-") not in known]
        if unknown:
            raise InputError(foreign_options.answer(unknown[0], command.split()[0], known)) from None
        raise InputError(_sentence(printed.getvalue(), command)) from None


def _refuse_empty_names(command: str, arguments: Sequence[str]) -> None:
    """Raises InputError for "" where a name is expected; a path of it would be the working directory.

    Fields of the experiment, such as --train.init-from, and --licence may be empty.
    """
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, equals, value = (before, "=", word) if before.startswith("--") else ("", "=", word)
        if word.startswith("--"):
            name, equals, value = word.partition("=")
        if equals and not value and "." not in name and name != "--licence":
            raise InputError(f"{PROGRAM} {command}: {name or 'an argument'} is an empty text: name something")


def _refuse_unknown(options: type, command: str, rest: Sequence[str], default: Any) -> str:
    """Returns the sentence for arguments that the parser has left over."""
    settings = {"prog": PROGRAM} | ({} if default is None else {"default": default})
    unknown = next((word for word in rest if re.match(r"--?[a-zA-Z]", word)), None)
    if unknown:
        known = _known_options(options, settings)
        return foreign_options.answer(unknown.partition("=")[0], command.split()[0], known)
    return f"{PROGRAM} {command} does not take {rest[0]!r}: an option's name, --NAME, precedes its value"


def _known_options(options: type, settings: dict[str, Any]) -> set[str]:
    """Returns the names of all options that the parser's help mentions."""
    shown = io.StringIO()
    try:
        with redirect_stdout(shown):
            tyro.cli(options, args=["--help"], **settings)
    except SystemExit:
        pass
    return {"-h", *re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", shown.getvalue())}


def _sentence(box: str, command: str) -> str:
    """Returns the parser's message, text in a box between rulers and below a title, as one sentence."""
    lines = "\n".join(line.strip("│ ") for line in box.splitlines()[1:])
    text = next(part for part in re.split(r"^[─-]*$", lines, flags=re.MULTILINE) if part.strip())
    text = " ".join(text.split()).rstrip(".")
    if missing := re.match(r"Missing from .*?: +(\S+) +(.*?) \(required\)", text):
        return f"{PROGRAM} {command} needs {missing[1]}: {missing[2][:1].lower()}{missing[2][1:].rstrip('.')}"
    for pattern, meaning in _REPHRASED.items():
        text = re.sub(pattern, meaning, text)
    return text[:1].lower() + text[1:]


def _choices(listed: str) -> str:
    """Returns choices without that of absence, with which the parser lists them in no order."""
    choices = listed.split(", ")
    return ", ".join(sorted(set(choices) - {_ABSENT})) if _ABSENT in choices else listed


def _numbers(kinds: Sequence[str]) -> str:
    """Returns the words for as many numbers as the parser expects: INT or FLOAT."""
    kind = "whole number" if kinds[0] == "INT" else "number"
    return f"a {kind}" if len(kinds) == 1 else f"{len(kinds)} {kind}s"


def folder_name(folder: object) -> str:
    """Returns the name of a folder at the end of a sentence, whose full stop "." would double."""
    return "the current directory" if str(folder) == "." else printable(folder)


def refuse_experiment(name: str) -> None:
    """Raises InputError for the name of an experiment, where trained weights are needed."""
    if name in presets.PRESETS and not Path(name).exists():
        run = Path("runs", name)
        advice = f"its run is {run}" if run.exists() else f"`{PROGRAM} train {name}` trains it in {run}"
        raise InputError(f"{name} is an experiment and has no weights: {advice}")


class TolerantStream:
    """An output whose failure, such as a full disk, ends the output and not the run that writes to it."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            return self._give_up(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> int:
        signals.say(f"{PROGRAM}: the run continues without output, which cannot be written: {error.strerror}")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # also for what is still in its buffer
        os.close(nowhere)
        return 0


def wide_console() -> Console:
    """Returns a console for tables; a pipe or a file, which has no width, gets 160 columns."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)
    return console


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows progress on stderr, to be called with the number done and the total.

    Outside terminals it is a line twice a minute.
    """
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console,
                   disable=not console.is_terminal)  # fmt: skip
    task, printed = bar.add_task(description, total=None), time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal printed
        bar.start()  # not before: what is wrong with the arguments is printed without a bar
        bar.update(task, completed=done, total=total)
        if not console.is_terminal and time.monotonic() - printed > _SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            print(f"{description}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()
