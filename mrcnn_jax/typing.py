"""Array types for signatures, with the legend of dimension letters.

=====  ===========================================================================
B      images of one device (or of one process, on the host)
H W    height and width of the padded image, or of the array at hand
C      channels
F      cells of all feature maps, flat
PH PW  bins of a RoI along y and x
L      pyramid levels
G      object slots of an image (fixed; ``valid`` marks those that hold one)
A      anchors of an image, over all levels
P      proposals of an image
N      boxes or RoIs
S      anchors sampled for training
R      RoIs sampled for training
D      detections of an image
K      foreground classes; K1 with background
M      side of a mask (in a batch: of the mask cropped to its object's box)
J      keypoints of an object
=====  ===========================================================================

Small letters, such as n or h w, are sizes of one function's own. Functions accept NumPy arrays wherever they
accept JAX arrays. The tests check these types at every call (jaxtyping's import hook).
"""

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Key, PRNGKeyArray, Shaped, UInt8, UInt16

Array = jax.Array | np.ndarray

__all__ = ["Array", "Bool", "Float", "Int", "Integer", "Key", "PRNGKeyArray", "Shaped", "UInt8", "UInt16"]
