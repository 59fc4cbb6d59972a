"""Distillation: through the frozen model, predictors learn what to keep, what to merge, and what to correct."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from patchranking.errors import UserError
from patchranking.predictor.descent import descend
from patchranking.predictor.losses import standardise
from patchranking.predictor.networks import Predictor
from patchranking.predictor.precision import TrainingPrecision, frozen_pass, precision_for
from patchranking.predictor.rows import Rows, split
from patchranking.predictor.targets import FEATURE, Target
from patchranking.pruning.attach import Reduced, Reduction, run_reduced
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import top_patches
from patchranking.ranking.gates import open_gates
from patchranking.ranking.ranking import places
from patchranking.towers import VisionTower

__all__ = ["IMAGES_PER_STEP", "Distillation", "distill", "soft_damage", "soft_gates"]

IMAGES_PER_STEP = 16
_KEEP_RATES = (0.1, 0.7)
"""Every step draws its keep rate between these."""
_WIDTHS = (0.1, 0.03)
"""Width of the gates' threshold in places of the order, at the first and the last step."""
_PLACE_A_SCORE = 12**-0.5
"""How far a patch moves in the order, as a share of it, for one standard deviation of score, if scores were uniform."""
_REACH = 2.0
"""Patches further than this many widths below the threshold are left out of the pass."""
_REPORTED = (0.8, 0.6, 0.5, 0.4)
_HELD_OUT_BATCH = 64


@dataclass(frozen=True)
class Distillation:
    """What a distillation reached.

    Attributes:
        n_train: Images fitted to.
        n_held_out: Images held out; they only measure.
        steps: Optimiser steps.
        precision: Of the passes through the model.
        feature_error: Keep rate -> mean 1 - cosine of the pruned to the dense feature, or to whatever the target is, on
            the held-out images.
    """

    n_train: int
    n_held_out: int
    steps: int
    precision: TrainingPrecision
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
    predictors: Mapping[int, Predictor],
    tower: VisionTower,
    tokens: Tensor,
    full: Tensor,
    schedule: Schedule,
    width: float | None = None,
    target: Target = FEATURE,
) -> Tensor:
    """Damage done to tokens that go through the stages of a schedule, 1 - cosine to the dense feature, ``(batch,)``.

    Under autocast, the blocks alone run in lower precision.

    Args:
        predictors: Block -> what chooses, merges and corrects there.
        tower: The image encoder.
        tokens: Tokens that enter the first stage, ``(batch, prefix + patches, width)``.
        full: Features of the dense model, ``(batch, features)``, or what else ``target.dense`` gave.
        schedule: The stages.
        width: Width of the soft gates' threshold in places, as a share of the patches; a hard choice when omitted.
        target: What is to be preserved.
    """
    prefix = tower.num_prefix_tokens

    def stage(predictor: Predictor, count: int) -> Reduction:
        def reduce(tokens: Tensor, sizes: Tensor | None) -> Reduced:
            with torch.autocast(tokens.device.type, enabled=False):
                if width is None:
                    return predictor.prune(tokens, min(count, tokens.shape[1] - prefix), top_patches, sizes)
                fewer = max(1, min(count, tokens.shape[1] - prefix - 1))
                return predictor.prune(tokens, fewer, sizes=sizes, soften=partial(soft_gates, width=width))

        return reduce

    counts = schedule.kept(tower.num_patches)
    reductions = {block: stage(predictors[block], count) for block, count in counts.items()}
    found = run_reduced(tower, tokens, schedule.block, reductions, target.stop)
    with torch.autocast(tokens.device.type, enabled=False):
        return target.damage(tower, found, full)


def distill(
    predictors: Mapping[int, Predictor],
    tower: VisionTower,
    tokens: Rows,
    features: Rows,
    schedule: Schedule,
    steps: int = 1000,
    batch_size: int = IMAGES_PER_STEP,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    held_out: Tensor | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    target: Target = FEATURE,
    precision: TrainingPrecision | None = None,
) -> Distillation:
    """Trains the predictors of all stages in place, together, by what they do to the feature; no ranking is needed.

    Every step draws a keep rate, turns scores into soft gates, and descends on 1 - cosine to the dense feature, or on
    the damage of another target. One pruner learns all keep rates. A step costs about a forward and a backward pass of
    the later blocks on what is left.

    Args:
        predictors: Block -> predictor, for every stage.
        tower: The image encoder; its weights get no gradient.
        tokens: Cached tokens that enter the first stage, ``(views, images, prefix + patches, width)``, any floating
            type, on any device; every step draws one view of its images.
        features: Features of the dense model, ``(views, images, features)``, or what else ``target.dense`` gave.
        schedule: The stages, in proportion.
        steps: Optimiser steps (AdamW, warm-up, cosine schedule down to a twentieth).
        batch_size: Images per step.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        held_out: Indices of the images that only measure, on their first view; a tenth when omitted.
        seed: Seed of the split, the order and the keep rates.
        checkpoint: File for the progress every few seconds; from one that is there, it goes on.
        target: What is to be preserved.
        precision: Of the passes through the tower, see ``precision_for``; predictors and errors are float32.

    Returns:
        The sizes and the feature error on the held-out images.

    Raises:
        UserError: If there are fewer than 4 images, or fewer than 2 patches, or the precision is not for this tower.
    """
    precision = precision_for(tower, precision)
    images = tokens.shape[1]
    if images < 4:
        raise UserError(f"A predictor needs at least 4 images, better some hundreds, not {images}.")
    if tower.num_patches < 2:
        raise UserError("This model has a single patch: there is nothing to prune.")
    generator = torch.Generator().manual_seed(seed)
    train, held_out = split(images, held_out, generator)
    together = nn.ModuleDict({str(block): predictor for block, predictor in sorted(predictors.items())})

    def loss_of(step: int, draw: tuple[Tensor, float, int]) -> Tensor:
        batch, keep, view = draw
        width = _WIDTHS[0] * (_WIDTHS[1] / _WIDTHS[0]) ** (step / max(1, steps - 1))
        cached, full = tokens[view, batch].to(tower.device, tower.dtype), features[view, batch].to(tower.device)
        with frozen_pass(tower, precision):
            return soft_damage(predictors, tower, cached, full, schedule.at(keep), width, target=target).mean()

    draws = _draws(train, batch_size, tokens.shape[0], generator)
    descend(together, draws, loss_of, steps, learning_rate, weight_decay, checkpoint)
    rates = {str(rate): schedule.at(rate) for rate in _REPORTED}
    error = {rate: _error(predictors, tower, tokens, features, held_out, at, target) for rate, at in rates.items()}
    return Distillation(len(train), len(held_out), steps, precision, error)


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


@torch.no_grad()
def _error(
    predictors: Mapping[int, Predictor],
    tower: VisionTower,
    tokens: Rows,
    features: Rows,
    images: Tensor,
    schedule: Schedule,
    target: Target,
) -> float:
    """Mean damage on the first view of some images."""
    total = 0.0
    for part in images.split(_HELD_OUT_BATCH):
        cached, full = tokens[0, part].to(tower.device, tower.dtype), features[0, part].to(tower.device)
        total += soft_damage(predictors, tower, cached, full, schedule, target=target).sum().item()
    return total / len(images)
