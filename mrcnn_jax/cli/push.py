"""`mrcnn push`: shares a detector on the Hugging Face Hub, or as a folder."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from mrcnn_jax.cli.exit_codes import OK
from mrcnn_jax.cli.terminal import TrainedDirectory, folder_name, parse, refuse_experiment
from mrcnn_jax.errors import InputError, printable


@dataclass(frozen=True)
class Options:
    """Write a detector as model.safetensors, experiment.json, dataset.json and a model card, and upload it to
    the Hugging Face Hub."""

    directory: TrainedDirectory
    model: tyro.conf.Positional[str] = ""
    """Name on the Hub, hf://owner/name (needs the extra mrcnn_jax[hub], and `hf auth login`); made if it does
    not exist."""
    out: Path | None = None
    """New folder for the files, which other commands accept too. Without a name nothing is uploaded."""
    licence: str = ""
    """Licence of the weights for the model card, such as `apache-2.0`; by default the card has none."""
    private: bool = False
    """Make the model on the Hub a private one."""


def main(arguments: list[str]) -> int:
    """Runs `mrcnn push`; returns the exit status."""
    options = parse(Options, "push", arguments)
    refuse_experiment(options.directory)
    if not (options.model or options.out):
        raise InputError("give a name on the Hub, hf://owner/name, or a folder, --out DIR")
    from mrcnn_jax.weights import hub

    if not options.model:
        hub.write_shared_model(options.directory, options.out, options.licence)
        print(f"The model and its card are in {folder_name(options.out)}.")
        return OK
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        address = hub.push(
            options.directory, options.model, out=out, licence=options.licence, private=options.private
        )
    print(f"The model is at {printable(address)}; its name is {printable(options.model)}.")
    return OK
