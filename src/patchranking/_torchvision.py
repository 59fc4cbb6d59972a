"""Lets a torchvision built for CUDA be imported with a CPU-only torch.

``pip install open_clip_torch`` brings torchvision's CUDA build; with a CPU build of torch its compiled operators
cannot load, and the import stops at the missing operators although only the image transforms are needed.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

__all__ = ["declare_missing_operators"]

_OPERATORS = ("nms", "qnms")
_kept_alive: list[torch.library.Library] = []


def declare_missing_operators() -> None:
    """Declares torchvision's operators, without an implementation, when torchvision cannot import otherwise."""
    if torch.version.cuda or "torchvision" in sys.modules or not importlib.util.find_spec("torchvision"):
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
