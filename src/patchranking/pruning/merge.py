"""Merging: a patch goes on in another one, which counts for both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from patchranking.pruning.select import gather_tokens

__all__ = ["Matching", "merge", "nearest"]


class Matching(NamedTuple):
    """Which patches merge into which, as numbers among the patches.

    Attributes:
        sources: Patches that go, ``(batch, merged)``.
        targets: The patch that each of them merges into, ``(batch, merged)``; one may take in several.
        stays: The other patches, targets among them, in the order in which they go on, ``(batch, kept)``.
    """

    sources: Tensor
    targets: Tensor
    stays: Tensor


def nearest(metric: Tensor, stays: Tensor) -> tuple[Matching, Tensor]:
    """Matches every patch that goes with the most similar one that stays.

    Args:
        metric: What similarity is measured by, its cosine, ``(batch, patches, any)``.
        stays: The patches that stay, ``(batch, kept)``.

    Returns:
        The matching, sources in ascending order, and the cosine of each pair, ``(batch, gone)``.
    """
    gone = metric.shape[1] - stays.shape[1]
    sources = torch.ones(metric.shape[:2], device=metric.device).scatter(1, stays, 0)
    sources = sources.argsort(dim=1, descending=True, stable=True)[:, :gone]
    unit = F.normalize(metric, dim=-1)
    similarity, partner = (gather_tokens(unit, sources, 0) @ gather_tokens(unit, stays, 0).transpose(1, 2)).max(-1)
    return Matching(sources, stays.gather(1, partner), stays), similarity


def merge(
    tokens: Tensor, sizes: Tensor, matching: Matching, num_prefix_tokens: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Merges patches to the mean of all that they stand for.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        sizes: How many patches each token stands for, ``(batch, prefix + patches)``.
        matching: What merges.
        num_prefix_tokens: Tokens before the patches; they never merge.
        weights: Share of each source that merges, ``(batch, merged)``; the rest of it is lost. All of it when omitted.

    Returns:
        Tokens ``(batch, prefix + kept, width)`` and their sizes.
    """
    prefix, stays = num_prefix_tokens, matching.stays
    own, gone = gather_tokens(sizes.unsqueeze(-1), stays, prefix), (matching.sources + prefix).unsqueeze(-1)
    moved_sizes = sizes.unsqueeze(-1).gather(1, gone)
    moved = tokens.gather(1, gone.expand(-1, -1, tokens.shape[-1])) * moved_sizes
    if weights is not None:
        moved, moved_sizes = moved * weights.unsqueeze(-1), moved_sizes * weights.unsqueeze(-1)
    order = torch.arange(stays.shape[1], device=tokens.device).expand_as(stays)
    places = stays.new_zeros(tokens.shape[0], tokens.shape[1] - prefix).scatter(1, stays, order)
    into = (places.gather(1, matching.targets) + prefix).unsqueeze(-1)
    sums = (gather_tokens(tokens, stays, prefix) * own).scatter_add(1, into.expand_as(moved), moved)
    total = own.scatter_add(1, into, moved_sizes)
    return sums / total, total.squeeze(-1)
