"""The fallback: images whose pruned feature is in doubt run once more, densely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from patchranking.errors import UserError
from patchranking.predictor.doubt import Doubt, dropped_share, signs
from patchranking.pruning.attach import Reduction, run_reduced
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["NEEDS_A_FIT", "ONE_PASS", "Doubted", "Seen", "check_fallback", "run_doubted", "with_fallback"]

NEEDS_A_FIT = "Only a fitted pruner estimates its errors: give one with --pruner, or leave --fallback out."
ONE_PASS = "An exported model runs in one pass, without an estimate of errors: leave --fallback out."


class Seen(NamedTuple):
    """What a pruned run gives, and shows of itself.

    Attributes:
        features: ``(batch, features)``, not normalised.
        signs: See ``doubt.signs``, ``(batch, signs)``.
    """

    features: Tensor
    signs: Tensor


class Doubted(NamedTuple):
    """Features of images, with how far each may be from the dense one.

    Attributes:
        features: ``(batch, features)``, not normalised.
        errors: Estimated 1 - cosine of the pruned feature to the dense one, float32 ``(batch,)``.
        dense: Whether the feature is the dense one, because that estimate was above the fallback, bool ``(batch,)``.
    """

    features: Tensor
    errors: Tensor
    dense: Tensor


def check_fallback(fallback: float) -> float:
    """Returns the estimated error above which images run densely; raises UserError where it is none."""
    if not fallback >= 0:
        raise UserError(f"A fallback is an estimated 1 - cosine above which images run densely, not {fallback:g}.")
    return fallback


def run_doubted(tower: VisionTower, entering: Tensor, schedule: Schedule, reductions: Mapping[int, Reduction]) -> Seen:
    """Runs the pruned blocks.

    Args:
        tower: The image encoder.
        entering: Tokens that enter the first stage, ``(batch, prefix + patches, width)``.
        schedule: The stages.
        reductions: What happens before their blocks.
    """
    found = run_reduced(tower, entering, schedule.block, reductions)
    features, prefix = tower.pool(found.tokens), tower.num_prefix_tokens
    own = signs(features, found, entering.shape[1] - prefix, prefix, dropped_share(schedule, tower.depth))
    return Seen(features, own)


def with_fallback(
    tower: VisionTower,
    pixels: Tensor,
    schedule: Schedule,
    reductions: Mapping[int, Reduction],
    doubt: Doubt,
    fallback: float | None,
) -> Doubted:
    """Encodes images pruned, and those in doubt once more from the first stage on, with all their patches.

    Args:
        tower: The image encoder, which no pruner is attached to.
        pixels: Preprocessed images ``(batch, 3, height, width)``.
        schedule: The stages; where they drop nothing, no image is in doubt.
        reductions: What happens before their blocks.
        doubt: Estimates errors.
        fallback: The estimate above which an image runs densely; None for none.
    """
    entering = tower.embed(pixels, schedule.block)
    found = run_doubted(tower, entering, schedule, reductions)
    errors = torch.zeros(len(pixels), device=pixels.device) if schedule.keep == 1 else doubt(found.signs)
    dense = torch.zeros_like(errors, dtype=torch.bool) if fallback is None else errors > fallback
    features = found.features
    if dense.any():
        features = features.clone()
        features[dense] = tower.pool(tower.run(entering[dense], schedule.block))
    return Doubted(features, errors, dense)
