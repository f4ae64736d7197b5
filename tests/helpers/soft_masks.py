"""Pasted masks as probabilities, of which the library keeps only the pixels above the threshold."""

import numpy as np

from mrcnn_jax.inference.paste import samples


def paste_probabilities(masks, boxes, height, width, convention="exact"):
    """Pastes masks like ``paste_masks``, as float32 probabilities, which are zero away from the box."""
    pasted = np.zeros((len(masks), height, width), np.float32)
    for index, window, probabilities in samples(masks, boxes, height, width, convention):
        pasted[index][window] = probabilities
    return pasted
