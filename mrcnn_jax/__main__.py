"""Runs the command line: ``python -m mrcnn_jax``."""

from mrcnn_jax.cli.main import console

if __name__ == "__main__":
    console()
