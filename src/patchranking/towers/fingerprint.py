"""Tells whether a model is the one an artefact was made for."""

from __future__ import annotations

import torch

from patchranking.towers import VisionTower

__all__ = ["fingerprint", "matches"]

_SAMPLES = 32
_TOLERANCE = 2**-7


def fingerprint(tower: VisionTower) -> list[float]:
    """Samples a few weights: equal for the same weights in any library and, nearly, in any floating type."""
    values = []
    for weight in tower.identity():
        flat = weight.detach().flatten()
        values.append(flat[torch.linspace(0, len(flat) - 1, _SAMPLES).long()].float().cpu())
    return [round(value, 7) for value in torch.cat(values).tolist()]


def matches(first: list[float], second: list[float]) -> bool:
    """Whether two fingerprints agree up to the rounding of bfloat16."""
    a, b = torch.tensor(first), torch.tensor(second)
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=_TOLERANCE, atol=1e-5))
