"""python -m mrcnn_jax"""

import sys

from mrcnn_jax.cli import main

sys.exit(main())
