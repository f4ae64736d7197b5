"""`mrcnn export-weights`: exports a detector's weights to another library."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import TrainedDirectory, parse, refuse_experiment


@dataclass(frozen=True)
class Options:
    """Write a detector's weights as a state dict that torchvision loads."""

    target: tyro.conf.Positional[Literal["torchvision"]]
    """Library to write for."""
    directory: TrainedDirectory
    file: tyro.conf.Positional[Path]
    """New file: .pth, .safetensors or .npz."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn export-weights`; returns the exit status."""
    options = parse(Options, "export-weights", arguments)
    refuse_experiment(options.directory)
    from mrcnn_jax.config import read_experiment
    from mrcnn_jax.weights.import_export import export_weights
    from mrcnn_jax.weights.locate import locate
    from mrcnn_jax.weights.summary import torchvision_loading_code

    differences = export_weights(options.target, options.directory, options.file)
    model = read_experiment(Path(locate(options.directory)) / "experiment.json").model
    loading, handled = torchvision_loading_code(model, options.file)
    differences = [line for line in differences if not line.startswith(handled)]
    lines = [f"The weights are in {options.file}. In torchvision:", *(f"  {line}" for line in loading)]
    if differences:
        lines.append("That model differs as follows; torchvision's constructor has arguments for some of it.")
        lines += [f"  {line}" for line in differences]
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return OK
