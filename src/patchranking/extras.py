"""Optional dependencies, and a torchvision built for CUDA that can be imported with a CPU-only torch.

``pip install open_clip_torch`` brings torchvision's CUDA build; with a CPU build of torch its compiled operators
cannot load, and the import stops at the missing operators although only the image transforms are needed.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from patchranking.errors import MissingExtraError

__all__ = ["declare_missing_operators", "import_extra"]

_USE_TORCHVISION = ("open_clip", "timm", "transformers", "torchvision", "clip_benchmark", "lightly")
_OPERATORS = ("nms", "qnms")
_kept_alive: list[object] = []


def import_extra(module: str, need: str, extra: str) -> ModuleType:
    """Imports an optional dependency.

    Args:
        module: Such as ``"timm"``.
        need: What it is needed for, as in ``"This model needs timm"``.
        extra: The extra of this package that brings it.

    Raises:
        MissingExtraError: If it is not installed.
    """
    if module.partition(".")[0] in _USE_TORCHVISION:
        declare_missing_operators()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(need, extra) from error


def declare_missing_operators() -> None:
    """Declares torchvision's operators, without an implementation, when torchvision cannot import otherwise."""
    import torch

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
