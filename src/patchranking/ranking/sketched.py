"""The default search: a sketched Jacobian gives a first order of the patches, the gradient of soft removal mends it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patchranking.errors import UserError
from patchranking.pruning.select import gather_tokens
from patchranking.ranking.gates import gated_features, open_gates, probes, sketched_jacobian
from patchranking.ranking.objectives import Damage, Objective, preservation
from patchranking.ranking.ranking import Ranking, places
from patchranking.towers import VisionTower

__all__ = ["sketched"]

_STEPS_A_SWEEP = 9
"""About as many steps pass over the keep rates once: first soft gates and long steps, then sharper and shorter ones."""
_KEPT_SHARES = (0.85, 0.2)
"""Keep rates at which the order is mended, from the largest to the smallest."""
_SOFTNESS = (0.1, 0.03)
"""Width of the gates' threshold in places of the order, at the first and the last step."""
_STEP = (0.06, 0.012)
"""Root mean square of a step, in places of the order, at the first and the last step."""
_REACH = 3.0
"""Patches further than this many widths below the threshold are left out of the pass."""
_SOFTEST = 0.1
"""Share of an image's mean column norm added to every column's, so that no patch moves too easily."""


def sketched(
    tower: VisionTower,
    pixels: Tensor,
    block: int = 3,
    num_probes: int = 3,
    steps: int = 12,
    objective: Objective = preservation,
    seed: int = 0,
) -> Ranking:
    """Greedy search made soft: the order of removal is improved by gradient descent on the damage it does.

    A forward pass and ``num_probes`` backward passes sketch the Jacobian of the feature by the patches' gates; the
    norm of its columns orders the patches. Every step then takes one keep rate, opens the gates of the patches above
    it in the order, closes those below, softly, and moves every patch against the gradient of the damage, divided by
    its column norm (a diagonal Gauss-Newton step). The gradient knows what the patches do together. Costs about
    ``1 + num_probes + 1.3 * steps`` passes through the later blocks, whatever the number of patches.

    Args:
        tower: The image encoder.
        pixels: Preprocessed images ``(batch, 3, height, width)``.
        block: Patches are removed before this block.
        num_probes: Backward passes of the sketch.
        steps: Gradient steps.
        objective: What counts as damage.
        seed: Seed of the probes, which all images share.

    Returns:
        The ranking; importance is a place in the order, about 0 ... 1.

    Raises:
        UserError: If a pruner is attached to the model, its pooling cannot be gated, or there are too many probes or
            too few steps.
    """
    if steps < 0:
        raise UserError(f"The sketched search takes 0 gradient steps or more, not {steps}.")
    tower.check_dense()
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            tokens = tower.embed(pixels.clone(), block)
        log_gates = tokens.new_zeros(len(tokens), tower.num_patches, dtype=torch.float32, requires_grad=True)
        full = gated_features(tower, tokens, log_gates, block)
        sketch = sketched_jacobian(full, log_gates, probes(num_probes, full.shape[1], seed))
        damage = objective(full.detach())
        del full
        moved = sketch.square().sum(1).sqrt()
        importance = places(moved.argsort(dim=1, stable=True))
        stiffness = moved + _SOFTEST * moved.mean(1, keepdim=True)
        sweeps = max(1, math.ceil(steps / _STEPS_A_SWEEP))
        per_sweep = math.ceil(steps / sweeps)
        for index in range(steps):
            course = index / max(1, steps - 1)
            share = _between(_KEPT_SHARES, index % per_sweep / max(1, per_sweep - 1))
            gradient = _damage_gradient(tower, tokens, block, importance, damage, share, _between(_SOFTNESS, course))
            gradient = gradient / stiffness
            size = gradient.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
            importance = importance - _between(_STEP, course) * gradient / size
    return Ranking.from_importance(importance)


def _between(ends: tuple[float, float], course: float) -> float:
    """From the first end to the second, in equal ratios."""
    return ends[0] * (ends[1] / ends[0]) ** course


def _damage_gradient(
    tower: VisionTower,
    tokens: Tensor,
    block: int,
    importance: Tensor,
    damage: Damage,
    share: float,
    softness: float,
) -> Tensor:
    """Gradient of the damage by each patch's place in the order, when about ``share`` of the patches stay.

    Patches so far below the threshold that their gates are nearly closed are left out, and their gradient is 0.

    Returns:
        ``(batch, patches)`` float32.
    """
    place = places(importance.argsort(dim=1, stable=True)).requires_grad_()
    patches, log_gates = open_gates(place, share, softness, _REACH)
    some = gather_tokens(tokens, patches, tower.num_prefix_tokens)
    features = gated_features(tower, some, log_gates, block, patches)
    images = torch.arange(len(tokens), device=tokens.device)
    (gradient,) = torch.autograd.grad(damage(features, images).sum(), place)
    opening = log_gates.detach().exp()
    slope = torch.zeros_like(gradient).scatter_(1, patches, opening * (1 - opening))
    return gradient - slope * (gradient.sum(1, keepdim=True) / slope.sum(1, keepdim=True))
