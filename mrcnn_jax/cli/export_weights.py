"""`mrcnn export-weights`: exports a detector's weights to another library, or as an own file."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from mrcnn_jax.cli import PROGRAM
from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import TrainedDirectory, parse, refuse_experiment
from mrcnn_jax.errors import printable


@dataclass(frozen=True)
class Options:
    """Write a detector's weights as a state dict that torchvision loads, or as a .safetensors file under our
    own names, which holds any detector and which `import-weights` takes."""

    target: tyro.conf.Positional[Literal["torchvision", "safetensors"]]
    """Library to write for, or safetensors for an own file."""
    directory: TrainedDirectory
    file: tyro.conf.Positional[Path]
    """New file: .pth, .safetensors or .npz for torchvision; .safetensors for an own file."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn export-weights`; returns the exit status."""
    options = parse(Options, "export-weights", arguments)
    refuse_experiment(options.directory)
    from mrcnn_jax.weights.import_export import export_model
    from mrcnn_jax.weights.summary import torchvision_loading_code

    model, differences = export_model(options.target, options.directory, options.file)
    if options.target == "safetensors":
        command = shlex.join([PROGRAM, "import-weights", str(options.file), "--out", "weights/mine"])
        print(printable(f"The weights are in {options.file}. `{command}` makes a detector of them again."))
        return OK
    loading, handled = torchvision_loading_code(model, options.file)
    differences = [line for line in differences if not line.startswith(handled)]
    lines = [f"The weights are in {options.file}. In torchvision:", *(f"  {line}" for line in loading)]
    if differences:
        lines.append("That model differs as follows; torchvision's constructor has arguments for some of it.")
        lines += [f"  {line}" for line in differences]
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return OK
