"""torchvision of PyPI is linked against CUDA; beside a torch for CPUs alone its import ends with
`operator torchvision::nms does not exist`. The names of two operators are all that it asks for.
"""

import torch

if not torch.cuda.is_available():
    LIBRARY = torch.library.Library("torchvision", "DEF")
    LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
