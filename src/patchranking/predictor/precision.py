"""Mixed precision of a distillation: the frozen model in bfloat16, what is learned in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from patchranking.errors import UserError
from patchranking.towers import VisionTower

__all__ = ["TrainingPrecision", "frozen_pass", "precision_for"]

TrainingPrecision = Literal["32-true", "bf16-mixed"]


def precision_for(tower: VisionTower, wanted: TrainingPrecision | None = None) -> TrainingPrecision:
    """The precision in which gradients pass a tower: by default bf16-mixed where its device multiplies bfloat16.

    Raises:
        UserError: If bf16-mixed is wanted and the tower's weights are not float32.
    """
    if tower.dtype != torch.float32:
        if wanted == "bf16-mixed":
            raise UserError(f"This model's weights are {tower.dtype}, and bf16-mixed is for float32: leave it out.")
        return "32-true"
    if wanted is not None:
        return wanted
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if tower.device.type == "cuda" else _cpu_is_fast()
    return "bf16-mixed" if fast and tower.device.type in ("cpu", "cuda") else "32-true"


def _cpu_is_fast() -> bool:
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile"))


@contextmanager
def frozen_pass(tower: VisionTower, precision: TrainingPrecision) -> Iterator[None]:
    """Runs a tower whose weights are not trained, but through which gradients pass, without waste.

    In the meantime its weights ask for a gradient, which nobody computes: only then does PyTorch make one matrix
    product of a batch whose images do not lie one behind the other, as in ``torch.nn.MultiheadAttention``.
    """
    still = [weight for weight in tower.module.parameters() if weight.is_floating_point() and not weight.requires_grad]
    for weight in still:
        weight.requires_grad_(True)
    try:
        with torch.autocast(tower.device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            yield
    finally:
        for weight in still:
            weight.requires_grad_(False)
