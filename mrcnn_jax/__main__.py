"""python -m mrcnn_jax"""

from mrcnn_jax.cli import console

console()
