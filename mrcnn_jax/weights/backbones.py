"""Infers the depth and width of a ResNet or ResNeXt from the tensors of a file."""

from collections.abc import Callable

from mrcnn_jax.config import BackboneConfig
from mrcnn_jax.config.model import BASIC
from mrcnn_jax.errors import InputError
from mrcnn_jax.models.resnet import DEPTHS
from mrcnn_jax.weights.param_map import Tensors

_MAX_BLOCKS = 100


def infer_backbone(
    tensors: Tensors, stem_weight: str, block_prefix: Callable[[int, int], str], origin: str
) -> BackboneConfig:
    """Infers the configuration of a backbone: its depth, width and groups; all else is the default.

    Args:
        tensors: of the file.
        stem_weight: name of the weight of the first convolution.
        block_prefix: maps a stage (2 to 5) and the number of a block to the prefix of the block's names.
        origin: name of the file, for messages.

    Raises:
        InputError: the tensors are not those of a ResNet or ResNeXt.
    """
    def has_block(stage, number):
        return any(name.startswith(f"{block_prefix(stage, number)}.") for name in tensors)

    def count_blocks(stage):
        return next((number for number in range(_MAX_BLOCKS) if not has_block(stage, number)), _MAX_BLOCKS)

    depths = tuple(count_blocks(stage) for stage in (2, 3, 4, 5))
    is_bottleneck = f"{block_prefix(2, 0)}.conv3.weight" in tensors
    candidates = [name for name in DEPTHS if DEPTHS[name] == depths and (name not in BASIC) == is_bottleneck]
    middle = tensors.get(f"{block_prefix(2, 0)}.conv2.weight")
    if not candidates or stem_weight not in tensors or middle is None:
        known, blocks = ", ".join(DEPTHS), " ".join(map(str, depths))
        raise InputError(f"the backbone of {origin} is none of {known}: blocks per stage are {blocks}")
    name, width = candidates[0], tensors[stem_weight].shape[0]
    if not is_bottleneck:
        return BackboneConfig(name=name, width=width)
    groups = middle.shape[0] // middle.shape[1]
    group_width = middle.shape[0] * 64 // (width * groups)
    return BackboneConfig(name=name, width=width, groups=groups, group_width=group_width)
