"""Sizes that decide speed and memory of the RoI operations, never their results.

Measurements: benchmarks/results/ROI_OPS.md (CPU, two cores).
"""

SAMPLES_PER_BLOCK = 2
"""Side of a block of samples whose reads are unrolled: 2 x 2 samples of 4 cells, the usual sampling ratio."""
CELLS_PER_BLOCK = 4
"""Side of a block of whole cells: RoIPool in blocks of 4 x 4 is 8 times as fast forward as cell by cell."""
AVERAGED_CELLS_PER_BLOCK = 2
"""Side of such a block where all cells of a bin are averaged: position-sensitive bins are small."""
TILE_BYTES_FIXED = 2**22
"""Bins of a "tiled" tile where all bins have equally many samples."""
TILE_BYTES_ADAPTIVE = 2**20
"""Bins of a tile otherwise: smaller, as the largest bin of a tile sets the cost of all its bins."""
TILE_BYTES_GRADIENT = 2**18
"""Gradient of a tile, which stays in a core's cache while it is scattered: half the time of all at once."""
JOINED_PYRAMID_BYTES = 2**24
"""Largest pyramid that "tiled" joins into one array, instead of compiling a loop for each level."""
ADAPTIVE_GROUPS = 4
"""Groups of RoIs of similar sizes that "gather" processes one after another under adaptive sampling."""
SCATTERED_ROW_CELLS = 48
"""Cells of a bin up to which a CPU scatters RoIPool's gradient faster by rows of channels than by element."""
MATMUL_ROIS = 32
"""RoIs of a "matmul" tile: its intermediate product takes 2 MB of bfloat16 on TPU (ROI_OPS.md, temporary)."""
