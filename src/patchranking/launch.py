"""Lightning Fabric for the loops that train: on one device, or on the processes that ``torchrun`` started."""

from __future__ import annotations

import os
from typing import Any

import torch

from patchranking.extras import import_extra

__all__ = ["launched"]


def launched(device: torch.device, precision: str | None, need: str, extra: str) -> Any:
    """Launches Fabric.

    Args:
        device: Of the model; under ``torchrun`` every process has its own of that kind.
        precision: 32-true, or bf16-mixed, the default on a GPU.
        need: As in ``import_extra``, where Fabric is not installed.
        extra: As there.

    Raises:
        MissingExtraError: If lightning-fabric is not installed.
    """
    library = import_extra("lightning_fabric", need, extra)
    one: Any = 1 if device.type != "cuda" else [device.index or 0]
    several = library.plugins.environments.TorchElasticEnvironment.detect()
    fabric = library.Fabric(
        accelerator=device.type,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]) if several else one,
        precision=precision or ("bf16-mixed" if device.type == "cuda" else "32-true"),
    )
    fabric.launch()
    return fabric
