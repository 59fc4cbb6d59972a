"""Distillation: a predictor learns, through the frozen model, to keep the patches that keep the image feature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from patchranking.errors import UserError
from patchranking.predictor.losses import standardise
from patchranking.predictor.networks import Predictor
from patchranking.pruning.select import gather_tokens, kept_count
from patchranking.ranking.gates import gated_features, open_gates
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.ranking import places
from patchranking.towers import VisionTower

__all__ = ["Distillation", "Entering", "distill", "soft_gates"]

Entering = Callable[[Tensor, float], tuple[Tensor, int]]
"""Cached tokens and a keep rate -> the tokens that a predictor sees, and how many of their patches are to stay."""

_KEEP_RATES = (0.3, 0.8)
"""Every step draws its keep rate between these."""
_WIDTHS = (0.1, 0.03)
"""Width of the gates' threshold in places of the order, at the first and the last step."""
_PLACE_A_SCORE = 12**-0.5
"""How far a patch moves in the order, as a share of it, for one standard deviation of score, if scores were uniform."""
_REACH = 4.0
"""Patches further than this many widths below the threshold are left out of the pass."""
_WARM_UP = 20
_REPORTED = (0.8, 0.6, 0.5, 0.4)


@dataclass(frozen=True)
class Distillation:
    """What a distillation reached.

    Attributes:
        n_train: Images fitted to.
        n_held_out: Images held out; they only measure.
        steps: Optimiser steps.
        feature_error: Keep rate -> mean 1 - cosine of the pruned to the dense feature on the held-out images.
    """

    n_train: int
    n_held_out: int
    steps: int
    feature_error: dict[str, float]


def soft_gates(scores: Tensor, count: int, width: float) -> tuple[Tensor, Tensor]:
    """Gates of the ``count`` best patches, whose gradient goes straight through to the scores.

    See ``open_gates``; a patch moves in the order as its standardised score does.

    Args:
        scores: ``(batch, patches)``.
        count: Patches that a hard choice keeps, fewer than there are.
        width: Width of the threshold in places, as a share of the patches.

    Returns:
        Indices of the patches whose gates are not nearly closed, ``(batch, open)``, and the logarithms of their gates
        of the same shape.
    """
    moved = _PLACE_A_SCORE * standardise(scores)
    place = places(moved.detach().argsort(dim=1, descending=True, stable=True).flip(1))
    return open_gates(place + (moved - moved.detach()), count / scores.shape[1], width, _REACH)


def distill(
    predictor: Predictor,
    tower: VisionTower,
    tokens: Tensor,
    features: Tensor,
    block: int,
    steps: int = 300,
    batch_size: int = 16,
    learning_rate: float = 5e-4,
    weight_decay: float = 1e-2,
    held_out_share: float = 0.1,
    seed: int = 0,
    entering: Entering | None = None,
) -> Distillation:
    """Trains a predictor in place by what its choice does to the feature; no ranking is needed.

    Every step draws a keep rate, turns the scores into soft gates, runs the frozen blocks from ``block`` on with the
    logarithms of the gates added to the attention logits, and descends on 1 - cosine to the dense feature. One
    predictor learns all keep rates, and the correction of the tokens with them. A step costs about a forward and a
    backward pass of the later blocks on the gated patches.

    Args:
        predictor: Scores tokens ``(batch, prefix + patches, width)``.
        tower: The image encoder; its weights get no gradient.
        tokens: Cached tokens, those that enter ``block`` unless ``entering`` says otherwise, ``(views, images, prefix +
            patches, width)``, any floating type, on any device; every step draws one view of its images.
        features: Features of the dense model, ``(views, images, features)``.
        block: Patches are dropped before this block.
        steps: Optimiser steps (AdamW, warm-up, cosine schedule down to a twentieth).
        batch_size: Images per step.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        held_out_share: Share of the images held out; measured on their first view.
        seed: Seed of the split, the order and the keep rates.
        entering: How cached tokens come to enter ``block``, where earlier stages prune them on the way.

    Returns:
        The sizes and the feature error on the held-out images.

    Raises:
        UserError: If there are fewer than 4 images, fewer than 2 patches, or the model's pooling cannot be gated.
    """
    images = tokens.shape[1]
    if images < 4:
        raise UserError(f"A predictor needs at least 4 images, better some hundreds, not {images}.")
    if tower.num_patches < 2:
        raise UserError("This model has a single patch: there is nothing to prune.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(images, generator=generator)
    n_held_out = max(1, round(held_out_share * images))
    held_out, train = order[:n_held_out], order[n_held_out:]
    enter = entering or (lambda cached, keep: (cached, kept_count(keep, tower.num_patches)))
    weights = list(predictor.parameters())
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    waiting = torch.empty(0, dtype=torch.long)
    predictor.train()
    with tqdm(range(steps), desc="distill", unit="step") as bar:
        for step in bar:
            while len(waiting) < min(batch_size, len(train)):
                waiting = torch.cat([waiting, train[torch.randperm(len(train), generator=generator)]])
            batch, waiting = waiting[:batch_size], waiting[batch_size:]
            low, high = _KEEP_RATES
            keep = low + (high - low) * torch.rand((), generator=generator).item()
            width = _WIDTHS[0] * (_WIDTHS[1] / _WIDTHS[0]) ** (step / max(1, steps - 1))
            view = int(torch.randint(len(tokens), (), generator=generator))
            cached, full = tokens[view, batch].to(tower.device, tower.dtype), features[view, batch].to(tower.device)
            seen, count = enter(cached, keep)
            there = seen.shape[1] - tower.num_prefix_tokens
            count = min(count, there - 1)
            scores, corrected = predictor.correct(seen, count / there)
            patches, log_gates = soft_gates(scores, count, width)
            kept = gather_tokens(corrected, patches, tower.num_prefix_tokens)
            loss = feature_damage(gated_features(tower, kept, log_gates, block), full).mean()
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.4f}")
    predictor.eval()
    unseen = tokens[0, held_out], features[0, held_out]
    error = {str(rate): _error(predictor, tower, *unseen, block, rate, enter) for rate in _REPORTED}
    return Distillation(len(train), len(held_out), steps, error)


def _rate(step: int, steps: int) -> float:
    """Warm-up, then half a cosine from 1 to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return min(1.0, (step + 1) / _WARM_UP) * (0.05 + 0.95 * cosine)


@torch.no_grad()
def _error(
    predictor: Predictor,
    tower: VisionTower,
    tokens: Tensor,
    features: Tensor,
    block: int,
    keep: float,
    enter: Entering,
) -> float:
    total = 0.0
    for cached, full in zip(tokens.split(64), features.split(64), strict=True):
        pruned = predictor.prune(*enter(cached.to(tower.device, tower.dtype), keep))
        kept = tower.pool(tower.run(pruned.tokens, block))
        total += feature_damage(kept, full.to(tower.device)).sum().item()
    return total / len(tokens)
