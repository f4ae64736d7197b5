"""python -m mrcnn_jax"""

from mrcnn_jax.cli.main import console

console()
