"""python torchvision_ps_roi.py OPERATOR FOLDER: torchvision's operator on in.npz, with its gradient, to
out.npz."""

import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

operator, folder = getattr(torchvision.ops, sys.argv[1]), Path(sys.argv[2])
arrays = {name: torch.tensor(array) for name, array in np.load(folder / "in.npz").items()}
features = arrays["features"].requires_grad_(True)
sampling = {"sampling_ratio": 2} if operator is torchvision.ops.ps_roi_align else {}
pooled = operator(features, arrays["rois"], 7, 1 / 16, **sampling)
(gradient,) = torch.autograd.grad(pooled, features, arrays["cotangent"])
np.savez(folder / "out.npz", pooled=pooled.detach().numpy(), gradient=gradient.numpy())
