"""Distillation: a predictor learns, through the frozen model, to keep the patches that keep the image feature."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from patchranking.checkpoint import load_training, notes, save_training
from patchranking.errors import UserError
from patchranking.predictor.losses import standardise
from patchranking.predictor.networks import Predictor
from patchranking.predictor.rows import Rows, split
from patchranking.pruning.select import gather_tokens, kept_count
from patchranking.ranking.gates import gated_features, open_gates
from patchranking.ranking.objectives import feature_damage
from patchranking.ranking.ranking import places
from patchranking.towers import VisionTower

__all__ = ["Distillation", "Entering", "distill", "soft_damage", "soft_gates"]

Entering = Callable[[Tensor, float], tuple[Tensor, int]]
"""Cached tokens and a keep rate -> the tokens that a predictor sees, and how many of their patches are to stay."""

IMAGES_PER_STEP = 16
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
_SECONDS_PER_SAVE = 5.0
_HELD_OUT_BATCH = 64


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


def soft_damage(
    predictor: Predictor, tower: VisionTower, tokens: Tensor, full: Tensor, block: int, count: int, width: float
) -> Tensor:
    """Mean 1 - cosine to the dense feature where ``count`` patches go on through soft gates of a width.

    Args:
        predictor: Chooses and corrects.
        tower: The image encoder.
        tokens: Tokens that enter ``block``, ``(batch, prefix + patches, width)``.
        full: Features of the dense model, ``(batch, features)``.
        block: Patches are dropped before this block.
        count: Patches that a hard choice keeps, fewer than there are.
        width: Width of the gates' threshold in places, as a share of the patches.
    """
    scores, corrected = predictor.correct(tokens, count / (tokens.shape[1] - tower.num_prefix_tokens))
    patches, log_gates = soft_gates(scores, count, width)
    kept = gather_tokens(corrected, patches, tower.num_prefix_tokens)
    return feature_damage(gated_features(tower, kept, log_gates, block), full).mean()


def distill(
    predictor: Predictor,
    tower: VisionTower,
    tokens: Rows,
    features: Rows,
    block: int,
    steps: int = 300,
    batch_size: int = IMAGES_PER_STEP,
    learning_rate: float = 5e-4,
    weight_decay: float = 1e-2,
    held_out: Tensor | None = None,
    seed: int = 0,
    entering: Entering | None = None,
    checkpoint: Path | None = None,
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
        held_out: Indices of the images that only measure, on their first view; a tenth when omitted.
        seed: Seed of the split, the order and the keep rates.
        entering: How cached tokens come to enter ``block``, where earlier stages prune them on the way.
        checkpoint: File for the progress every few seconds; from one that is there, it goes on.

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
    train, held_out = split(images, held_out, generator)
    enter = entering or (lambda cached, keep: (cached, kept_count(keep, tower.num_patches)))
    weights = list(predictor.parameters())
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    done, saved = 0, time.monotonic()
    if checkpoint is not None and (about := notes(checkpoint)) is not None:
        load_training(checkpoint, predictor, optimiser)
        done = int(about["step"])
    predictor.train()
    draws = islice(_draws(train, batch_size, tokens.shape[0], generator), done, steps)
    with tqdm(total=steps, initial=done, desc="distill", unit="step") as bar:
        for step, (batch, keep, view) in enumerate(draws, start=done):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * _rate(step, steps)
            width = _WIDTHS[0] * (_WIDTHS[1] / _WIDTHS[0]) ** (step / max(1, steps - 1))
            cached, full = tokens[view, batch].to(tower.device, tower.dtype), features[view, batch].to(tower.device)
            seen, count = enter(cached, keep)
            count = min(count, seen.shape[1] - tower.num_prefix_tokens - 1)
            loss = soft_damage(predictor, tower, seen, full, block, count, width)
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}")
            if checkpoint is not None and (step + 1 == steps or time.monotonic() - saved > _SECONDS_PER_SAVE):
                save_training(checkpoint, predictor, optimiser, {"step": str(step + 1)})
                saved = time.monotonic()
    predictor.eval()
    error = {str(rate): _error(predictor, tower, tokens, features, held_out, block, rate, enter) for rate in _REPORTED}
    return Distillation(len(train), len(held_out), steps, error)


def _draws(
    train: Tensor, batch_size: int, views: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, float, int]]:
    """The images, the keep rate and the view of every step, without end."""
    waiting = torch.empty(0, dtype=torch.long)
    low, high = _KEEP_RATES
    while True:
        while len(waiting) < min(batch_size, len(train)):
            waiting = torch.cat([waiting, train[torch.randperm(len(train), generator=generator)]])
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        keep = low + (high - low) * torch.rand((), generator=generator).item()
        yield batch, keep, int(torch.randint(views, (), generator=generator))


def _rate(step: int, steps: int) -> float:
    """Warm-up, then half a cosine from 1 to a twentieth."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))
    return min(1.0, (step + 1) / _WARM_UP) * (0.05 + 0.95 * cosine)


@torch.no_grad()
def _error(
    predictor: Predictor,
    tower: VisionTower,
    tokens: Rows,
    features: Rows,
    images: Tensor,
    block: int,
    keep: float,
    enter: Entering,
) -> float:
    """Mean damage on the first view of some images."""
    total = 0.0
    for part in images.split(_HELD_OUT_BATCH):
        pruned = predictor.prune(*enter(tokens[0, part].to(tower.device, tower.dtype), keep))
        kept = tower.pool(tower.run(pruned.tokens, block))
        total += feature_damage(kept, features[0, part].to(tower.device)).sum().item()
    return total / len(images)
