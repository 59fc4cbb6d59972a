"""Soft removal: every patch has a gate between 0 (dropped) and 1 (kept), so damage has a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.select import top_patches
from patchranking.towers import VisionTower

__all__ = ["gated_features", "open_gates", "probes", "sketched_jacobian"]


def gated_features(
    tower: VisionTower, tokens: Tensor, log_gates: Tensor, block: int, positions: Tensor | None = None
) -> Tensor:
    """Features with the attention logits towards patch j shifted by ``log g_j`` in every block from ``block`` on.

    ``log g = 0`` leaves a patch alone; ``log g = -inf`` equals dropping it, because no token attends to it any more.

    Args:
        tower: The image encoder.
        tokens: Tokens that enter ``block``, ``(batch, prefix + patches, width)``.
        log_gates: ``(batch, patches)``.
        block: The first gated block.
        positions: Which patches these are, ``(batch, patches)``; all of the image when omitted.

    Returns:
        ``(batch, features)``.

    Raises:
        UserError: If the model pools by anything but its class token, a mean or attention.
    """
    bias = F.pad(log_gates, (tower.num_prefix_tokens, 0)).to(tokens.dtype)
    tokens = tower.run(tokens, block, key_bias=bias, positions=positions)
    return tower.pool(tokens, gates=log_gates.exp().to(tokens.dtype))


def probes(count: int, features: int, seed: int) -> Tensor:
    """Random directions R with ``E[R^T R] = I``: orthogonal rows, so with ``count == features`` it holds exactly.

    Args:
        count: Number of probes.
        features: Size of the feature.
        seed: Random seed; the same on every device.

    Returns:
        ``(count, features)`` float32.

    Raises:
        UserError: If there are more probes than features, or none.
    """
    if not 1 <= count <= features:
        raise UserError(f"The sketch takes between 1 and {features} probes for this model, not {count}.")
    gaussian = torch.randn(features, count, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    orthogonal, triangle = torch.linalg.qr(gaussian)
    uniform = orthogonal * triangle.diagonal().sign()
    return (uniform.T * (features / count) ** 0.5).float()


def sketched_jacobian(features: Tensor, log_gates: Tensor, directions: Tensor) -> Tensor:
    """Sketch ``S = R J`` of the Jacobian of unit features by log gates, one backward pass a probe.

    ``|S_j|^2`` estimates how far the unit feature moves, squared, when patch j goes, to first order.

    Args:
        features: Features that depend on ``log_gates``, ``(batch, features)``.
        log_gates: ``(batch, patches)``.
        directions: R, ``(probes, features)``.

    Returns:
        ``(batch, probes, patches)`` float32.
    """
    unit = F.normalize(features.float(), dim=-1)
    rows = [
        torch.autograd.grad(unit, log_gates, direction.expand_as(unit), retain_graph=True)[0]
        for direction in directions.to(unit)
    ]
    return torch.stack(rows, dim=1)


def open_gates(place: Tensor, share: float, width: float, reach: float) -> tuple[Tensor, Tensor]:
    """Relaxes the choice of a share of the patches to gates between 0 and 1.

    A gate is the sigmoid of the distance of a patch's place in the order to the threshold, midway between the last one
    kept and the first one dropped, in units of ``width``. Places cannot crowd at the threshold, as scores can, so that
    only few gates are half-open, and as the width shrinks they become the hard choice.

    Args:
        place: Place of each patch in the order of importance, ``(batch, patches)``, between 0 and 1; 1 stays longest.
        share: Share of the patches that a hard choice keeps.
        width: Width of the threshold in places.
        reach: Patches further than this many widths below the threshold are left out.

    Returns:
        Indices of the patches that are not left out, ``(batch, open)``, and the logarithms of their gates.
    """
    number = place.shape[1]
    patches = top_patches(place.detach(), min(number, math.ceil(number * (share + reach * width))))
    return patches, F.logsigmoid((place.gather(1, patches) - (1 - share)) / width)
