"""What the programs of this folder have in common: options within bounds, and the notes on how figures came about."""

import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from mrcnn_jax.errors import InputError


def check(options: Any, **least: float) -> None:
    """InputError for an option below its least value, or an ``out`` that is no JSON file."""
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(options, name)}, but must be {bound} or more")
    if options.out.suffix != ".json":
        raise InputError(f"--out is {options.out}, but must end in .json")


def command_line(program: str, options: Any, leave: Sequence[str] = ()) -> str:
    """How a program was called: without paths, without what has its default, and without the options to leave."""
    words = []
    for field in fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if value == field.default or isinstance(value, Path) or field.name in leave:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return " ".join([program, shlex.join(words)]).strip()


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def processor() -> str:
    """Its model."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.machine()


def write_files(program: str, options: type, run: Callable[[Any], list[Path]], arguments: list[str]) -> int:
    """A program that measures and writes files; returns the exit status."""
    try:
        files = run(tyro.cli(options, prog=program, args=arguments))
    except (InputError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {', '.join(map(str, files))}.")
    return 0
