"""The parts of torchvision used here, imported so that they also work beside a CPU-only torch.

torchvision's wheel is built for a CUDA torch.  Beside another build its compiled operators do not
load, and its import stops with "operator torchvision::nms does not exist" (pytorch/vision #9077),
although data sets and grids need none of them.  Declaring the two missing operators lets the
import through; where they exist, nothing is touched.
"""

import sys

import torch

try:
    from torchvision import datasets, utils
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    _declared = torch.library.Library("torchvision", "DEF")  # as long as this module lives
    _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import datasets, utils

__all__ = ["datasets", "utils"]
