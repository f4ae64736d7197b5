"""Identifies the model of another library that tensors belong to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrcnn_jax.config import Experiment, ModelConfig
from mrcnn_jax.errors import InputError
from mrcnn_jax.structures import DatasetInfo
from mrcnn_jax.weights import (
    caffe2,
    detectron2,
    detectron2_experiment,
    detectron2_settings,
    detectron2_yaml,
    torchvision,
)
from mrcnn_jax.weights.param_map import ParamMap, Tensors
from mrcnn_jax.weights.recognition import recognize_library, strip_shared_prefix


@dataclass(frozen=True)
class SourceModel:
    """The tensors of a file under current names, and the experiment that they belong to."""

    tensors: Tensors
    unused: Tensors
    experiment: Experiment
    make_param_map: Callable[[ModelConfig], ParamMap]
    origin: str
    known: tuple[str, ...] = ()
    """Parts of the experiment that are not assumed: a configuration file or stored anchors specify them."""
    info: DatasetInfo | None = None
    """Classes and keypoints, if the file specifies them."""

    @property
    def is_backbone(self) -> bool:
        """Returns whether the file holds a backbone alone."""
        return not self.experiment.model.tasks and self.info is None


def identify_model(
    source: str | None, tensors: Tensors, origin: str, config: Path | Mapping[str, Any] | None = None
) -> SourceModel:
    """Identifies the model of another library that tensors belong to.

    Args:
        source: the library that is expected, "torchvision" or "detectron2" (also for the original Detectron
            and MSRA's backbones), or None.
        tensors: of a file, as ``read_tensors`` returns them.
        origin: name of the file, for messages.
        config: Detectron2's configuration file, or some of its settings; for others the model zoo's values
            for such a model are assumed.

    Raises:
        InputError: the tensors, or the configuration, are not those of a supported model.
    """
    tensors = strip_shared_prefix(tensors)
    library = recognize_library(tensors, origin, source)
    if config and library != "detectron2":
        raise InputError(f"a configuration file is read for detectron2 only, not for {library}")
    try:
        if library == "torchvision":
            return _identify_torchvision(tensors, origin)
        return _identify_detectron2(tensors, origin, config)
    except (IndexError, ZeroDivisionError) as error:  # a tensor of too few axes, or without elements
        raise InputError(f"{origin} holds tensors whose shapes do not fit their names") from error


def _identify_torchvision(tensors: Tensors, origin: str) -> SourceModel:
    weights = torchvision.normalize_state_dict(tensors)
    counters = {name: tensor for name, tensor in tensors.items() if name.endswith("num_batches_tracked")}
    experiment = torchvision.infer_experiment(
        weights, origin, folded_norm="conv1.bias" in tensors, trained_norm=bool(counters)
    )
    return SourceModel(weights, counters, experiment, torchvision.make_param_map, origin)


def _identify_detectron2(
    tensors: Tensors, origin: str, config: Path | Mapping[str, Any] | None
) -> SourceModel:
    is_detectron = caffe2.is_caffe2(tensors)
    try:
        convert = caffe2.convert_to_detectron2 if is_detectron else detectron2.select_weights
        weights = convert(tensors)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from error
    known: tuple[str, ...] = ()
    if "stem.conv1.weight" in weights:
        if config:
            raise InputError(f"{origin} holds a backbone alone, but {config} configures a detector")
        experiment = detectron2_experiment.make_backbone_experiment(weights, is_detectron, origin)
    else:
        settings = detectron2_settings.infer_settings(weights, is_detectron, origin)
        stored = detectron2_settings.read_stored_anchors(tensors)
        known = ("model", "data") if config else ("model.rpn",) if stored else ()
        given = detectron2_yaml.read_settings(config) if isinstance(config, Path) else config or {}
        where = str(config) if isinstance(config, Path) else origin
        experiment = detectron2_experiment.make_experiment(settings | stored | given, is_detectron, where)
    return SourceModel(weights, {}, experiment, detectron2.make_param_map, origin, known)
