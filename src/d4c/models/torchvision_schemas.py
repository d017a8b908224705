"""Let PyPI's torchvision be imported beside a CPU build of torch.

PyPI's torchvision is compiled for CUDA; beside a CPU torch its operators are missing and its first import fails with
"operator torchvision::nms does not exist". Only two schemas are asked for at import, so declaring them is enough;
calling the operators still fails, and nothing here calls them.
"""

from __future__ import annotations

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare_torchvision_schemas() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` where a CPU torch lacks them; before importing torchvision."""
    if torch.version.cuda is not None:
        return
    for name in ("torchvision::nms", "torchvision::qnms"):
        if not torch._C._dispatch_has_kernel(name):
            try:
                torch.library.define(name, _SCHEMA)
            except RuntimeError:  # already declared, by us or by a torchvision that loaded
                continue
