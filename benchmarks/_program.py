"""Programs of benchmarks and experiments: bounds of options, command lines, versions, exit status."""

import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from mrcnn_jax.cli.exit_codes import INVALID_INPUT, OK
from mrcnn_jax.errors import InputError

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class ReportOptions:
    """Render result files as a page."""

    folder: tyro.conf.Positional[Path] = RESULTS
    """Folder of the result files and the page."""


def check(options: Any, **minimum: float) -> None:
    """Raises InputError for an option below its minimum, or an ``out`` that is not a JSON file."""
    for name, bound in minimum.items():
        if (given := getattr(options, name)) < bound:
            raise InputError(f"--{name.replace('_', '-')} is {given}, but must be {bound} or more")
    if options.out.suffix != ".json":
        raise InputError(f"--out is {options.out}, but must end in .json")


def option_words(name: str, value: Any) -> list[str]:
    """Returns the words that set an option, dotted or not, on a command line."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        group, dot, last = option.rpartition(".")
        return [f"--{option}" if value else f"--{group}{dot}no-{last}"]
    return [f"--{option}", *map(str, value if isinstance(value, tuple | list) else (value,))]


def command_line(program: str, options: Any, leave: Sequence[str] = ()) -> str:
    """Returns the command that a program was called with, without paths, defaults and options to leave."""
    words = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and not isinstance(value, Path) and field.name not in leave:
            words += option_words(field.name, value)
    return " ".join([program, shlex.join(words)]).strip()


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def rounded(value: float) -> float:
    """Rounds a measured number to 4 significant digits."""
    return float(f"{value:.4g}")


def machine(torchvision: Any = None) -> dict[str, Any]:
    """Describes machine and versions, also torchvision's, without names of hosts, users or folders."""
    import jax

    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "/" not in flag]
    return {
        "platform": jax.default_backend(), "device_kind": jax.devices()[0].device_kind,
        "processor": processor(), "cores": os.cpu_count(), "xla_flags": " ".join(flags), **versions("jax"),
        **(torchvision.versions if torchvision else {"torchvision": None}),
    }  # fmt: skip


def processor() -> str:
    """Returns the processor's model name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def render_files(
    program: str, render: Callable[[Path], list[Path]], arguments: Sequence[str] | None = None
) -> int:
    """Renders the results of a folder that the command line names; returns the exit status."""
    return write_files(program, ReportOptions, lambda options: render(options.folder), arguments)


def write_files(
    program: str, options: type, run: Callable[[Any], list[Path]], arguments: Sequence[str] | None = None
) -> int:
    """Runs a program that writes files, with arguments of the command line; returns its exit status."""
    try:
        files = run(tyro.cli(options, prog=program, args=arguments))
    except (InputError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return INVALID_INPUT
    print(f"Wrote {', '.join(map(str, files))}.")
    return OK
