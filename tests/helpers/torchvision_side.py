"""torchvision's side of test_torchvision_live.py and of recorded results, for an interpreter that has
torchvision.

Run as a program it reads commands from standard input, one JSON object per line, ``{"do": name of a function
below, ...its arguments}``, and answers each with a line.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

SPREAD = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "box_predictor.cls_score": 2.5,
    "box_predictor.bbox_pred": 0.7,
    "mask_predictor.mask_fcn_logits": 3.0,
    "keypoint_predictor.kps_score_lowres": 3.0,
}
"""Standard deviations of outputs where they are not 1, for scores that differ and boxes that move."""


def make(folder, images, seed, **model):
    """Writes a model with calibrated random weights to state.npz, and its detections in images to
    outputs.npz.

    ``images`` are heights and widths.
    """
    model = build(**model)
    rng = np.random.default_rng(seed)
    images = [draw_image(rng, *size) for size in images]
    with torch.no_grad(), Calibration(model, torch.Generator().manual_seed(seed)):
        model([to_tensor(images[0])])
    save_state(model, Path(folder))
    np.savez(Path(folder) / "outputs.npz", **detect_all(model, images))


def list_weights(file):
    """Writes the published weights of detectors and ResNets: address, size, AP, and the shapes of tensors."""
    names = torchvision.models.list_models(detection)
    names += [name for name in torchvision.models.list_models(torchvision.models) if "resne" in name]
    listed = []
    for name in names:
        with torch.device("meta"):
            kind = {"weights_backbone": None} if name in torchvision.models.list_models(detection) else {}
            state = torchvision.models.get_model(name, weights=None, **kind).state_dict()
        for weights in torchvision.models.get_model_weights(name):
            figures = weights.meta["_metrics"].get("COCO-val2017", {})
            shapes = {key: list(tensor.shape) for key, tensor in state.items()}
            listed.append({"model": name, "url": weights.url, "size": weights.meta["_file_size"],
                           "figures": figures, "shapes": shapes})  # fmt: skip
    Path(file).write_text(json.dumps(listed))


def take(file, out, seed, image, **model):
    """Loads all weights of ``file`` into a model, and writes its detections in the first image to ``out``."""
    model = build(**model)
    with np.load(file) as state:
        model.load_state_dict({name: torch.from_numpy(state[name]) for name in state}, strict=True)
    np.savez(out, **detect_all(model, [draw_image(np.random.default_rng(seed), *image)]))


def make_backbone(folder, name, seed):
    """Writes an ImageNet classifier to state.npz, and a normalised image with the outputs of its stages.

    ResNet-18 is also written to state.pth, nested as training scripts save it.
    """
    model = getattr(torchvision.models, name)(weights=None).eval()
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, 96, 128, generator=generator)
    features = {}
    for stage in range(1, 5):
        layer = f"layer{stage}"
        getattr(model, layer).register_forward_hook(
            lambda _, __, output, layer=layer: features.update({layer: output.numpy()})
        )
    with torch.no_grad(), Calibration(model, generator):
        model(image)
    model.fc.reset_parameters()  # its one output position has no spread to be calibrated by
    save_state(model, Path(folder))
    if name == "resnet18":
        torch.save({"model": model.state_dict(), "epoch": 3}, Path(folder) / "state.pth")
    with torch.no_grad():
        model.double()(image.double())
    np.savez(Path(folder) / "outputs.npz", image=image.numpy(), **features)


def build(name, epsilon=None, backbone=None, ratios=None, **settings):
    """Builds a detector in inference mode.

    Args:
        name: a function of torchvision.models.detection.
        epsilon: of the backbone's batch norm, which is frozen, as in a model with trained weights; None: not
            frozen.
        backbone: another network than ResNet-50, for a Mask R-CNN.
        ratios: aspect ratios of the anchors of such a Mask R-CNN.
        settings: arguments of the function.
    """
    if backbone:
        sizes = ((32,), (64,), (128,), (256,), (512,))
        anchors = AnchorGenerator(sizes, (tuple(ratios),) * 5) if ratios else None
        body = resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d)
        model = detection.MaskRCNN(body, rpn_anchor_generator=anchors, **settings)
    else:
        model = getattr(detection, name)(weights=None, weights_backbone=None, **settings)
    if epsilon is not None:
        freeze_norms(model.backbone.body, epsilon)
    return model.eval()


def freeze_norms(module, epsilon):
    """Replaces all batch norms by frozen ones."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, epsilon))
        freeze_norms(child, epsilon)


def draw_image(rng, height, width):
    """Draws a uint8 RGB image of slow waves, ellipses, rectangles and a little noise."""
    y, x = np.mgrid[:height, :width] / 100
    image = np.zeros((height, width, 3))
    for channel in range(3):
        waves = zip(rng.uniform(1, 12, 8), rng.uniform(0, 6, 8), rng.uniform(0, 6, 8), strict=True)
        for frequency, phase, angle in waves:
            image[..., channel] += np.cos(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    image = 128 + 20 * image
    for number in range(14):
        centre, size = rng.uniform(0, 1, 2) * (height, width) / 100, rng.uniform(0.05, 0.5, 2)
        u, v = (y - centre[0]) / size[0], (x - centre[1]) / size[1]
        inside = np.hypot(u, v) < 1 if number % 2 else np.maximum(abs(u), abs(v)) < 1
        image[inside] = rng.uniform(0, 255, 3)
    return np.uint8(np.clip(image + rng.normal(0, 4, image.shape), 0, 255))


class Calibration:
    """Context in which a forward pass draws the weights of a network layer by layer.

    Each layer sees the activations of the layers before it: norms get statistics near the true ones, other
        layers
    are centred and scaled, so that activations stay in a healthy range.
    """

    def __init__(self, model, generator):
        self.done, self.generator, self.hooks = set(), generator, []
        blocks = [module for module in model.modules() if isinstance(module, (BasicBlock, Bottleneck))]
        last = {block.bn2 if isinstance(block, BasicBlock) else block.bn3 for block in blocks}
        for name, module in model.named_modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                gain = 0.25 if module in last else 1.0  # lest the sums of residual blocks grow
                self.hooks.append(
                    module.register_forward_pre_hook(
                        lambda module, inputs, gain=gain: self.norm(module, inputs[0], gain)
                    )
                )
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                spread = next((value for end, value in SPREAD.items() if name.endswith(end)), 1.0)
                self.hooks.append(
                    module.register_forward_pre_hook(
                        lambda module, inputs, spread=spread: self.layer(module, inputs[0], spread)
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def first(self, module):
        new = module not in self.done
        self.done.add(module)
        return new

    def normal(self, size):
        return torch.randn(size, generator=self.generator)

    def norm(self, norm, x, gain):
        if self.first(norm):
            var, mean = torch.var_mean(x, dim=(0, 2, 3))
            channels = len(mean)
            norm.running_mean.copy_(mean + 0.1 * var.sqrt() * self.normal(channels))
            norm.running_var.copy_(var.clamp_min(0.2 * var.mean()) * torch.exp(0.2 * self.normal(channels)))
            norm.weight.copy_(gain * torch.exp(0.2 * self.normal(channels)))
            norm.bias.copy_(0.2 * self.normal(channels))
            if isinstance(norm, nn.BatchNorm2d):
                norm.num_batches_tracked.fill_(torch.randint(1, 10**6, (), generator=self.generator))

    def layer(self, layer, x, spread):
        """Draws weights; scales of convolutions before a norm differ, so that its epsilon matters."""
        if not self.first(layer):
            return
        fan_in = layer.weight[0].numel()
        layer.weight.copy_(
            self.normal(layer.weight.shape)
            * (2 / fan_in) ** 0.5
            * 10 ** (-1.5 * torch.rand((), generator=self.generator))
        )
        if layer.bias is not None:
            layer.bias.zero_()
            output = layer.forward(x)
            mean = output.mean(dim=[axis for axis in range(output.ndim) if axis != 1], keepdim=True)
            scale = spread / (output - mean).std()
            layer.weight.mul_(scale)
            layer.bias.copy_(0.2 * spread * self.normal(layer.bias.shape) - mean.flatten() * scale)


def to_tensor(image, dtype=np.float32):
    """Converts a uint8 image to a tensor as torchvision takes it."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(dtype) / 255)


def save_state(model, folder):
    """Writes a state dict to state.npz."""
    np.savez(folder / "state.npz", **{name: value.numpy() for name, value in model.state_dict().items()})


def detect(model, image):
    """Detects in an image, in float64, as torchvision resizes images less exactly in float32 and random
    weights amplify the difference.

    Returns:
        The image, detections as arrays, and "probabilities", the masks before they are pasted.
    """
    model, heads = model.double(), []
    hook = model.roi_heads.register_forward_hook(
        lambda _, __, output: heads.append(output[0][0].get("masks"))
    )
    with torch.no_grad():
        found = {name: value.numpy() for name, value in model([to_tensor(image, np.float64)])[0].items()}
    hook.remove()
    if "masks" in found:
        found["probabilities"] = heads[-1].numpy()[:, 0]
        found["masks"] = found["masks"][:, 0] > 0.5
    return {"image": image, **found}


def detect_all(model, images):
    """Detects in each image on its own; names of the arrays end in the number of the image."""
    found = enumerate(detect(model, image) for image in images)
    return {f"{name}{number}": value for number, arrays in found for name, value in arrays.items()}


COMMANDS = {function.__name__: function for function in (make, take, make_backbone, list_weights)}

if __name__ == "__main__":
    torch.set_num_threads(1)  # the same bits every time, and faster beside other processes
    for line in sys.stdin:
        arguments = json.loads(line)
        COMMANDS[arguments.pop("do")](**arguments)
        print("done", flush=True)
