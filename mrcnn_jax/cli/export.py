"""`mrcnn export`: exports a detector to run without this package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.inference_options import CheckpointOptions, given_settings, parse_with_settings
from mrcnn_jax.cli.terminal import TrainedDirectory, folder_name, refuse_experiment


@dataclass(frozen=True)
class Options(CheckpointOptions):
    """Write a detector as a folder of programs, weights, classes, preprocessing and a README, that JAX alone
    or onnxruntime runs, and that `predict` and `evaluate` take."""

    directory: TrainedDirectory
    out: Path
    """New folder."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """Format of the programs: stablehlo is for JAX on CPUs, NVIDIA GPUs and TPUs; onnx for onnxruntime (needs
    the extra mrcnn_jax[onnx])."""
    batch_size: int = 1
    """Images of a call, with stablehlo."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn export`; returns the exit status."""
    options = parse_with_settings(Options, "export", arguments)
    refuse_experiment(options.directory)
    from mrcnn_jax.inference.export.export import export

    out = export(
        options.directory, options.out, format=options.format, batch_size=options.batch_size,
        settings=given_settings(options), checkpoint=options.checkpoint,
    )  # fmt: skip
    megabytes = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    print(f"The detector is in {folder_name(out)} ({megabytes:.0f} MB); README.md there says how to run it.")
    return OK
