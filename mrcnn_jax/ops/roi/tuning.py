"""Sizes that affect the speed and the memory of RoI operations, never their results."""

# TODO measured notes
SAMPLES_PER_BLOCK = 2
CELLS_PER_BLOCK = 4
TILE_BYTES_FIXED = 2**22
TILE_BYTES_ADAPTIVE = 2**20
TILE_BYTES_GRADIENT = 2**18
JOINED_PYRAMID_BYTES = 2**24
ADAPTIVE_GROUPS = 4
SCATTERED_ROW_CELLS = 48
MATMUL_ROIS = 32
