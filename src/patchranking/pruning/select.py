"""Top-k and gather: pure functions on tensors, with static shapes."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from patchranking.errors import UserError

__all__ = ["best_first", "check_keep_rate", "gather_tokens", "kept_count", "top_patches"]


def check_keep_rate(rate: float) -> float:
    """Returns ``rate`` as a float, or raises UserError when it is outside 0 < rate <= 1."""
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < rate <= 1:
        shown = repr(rate) if isinstance(rate, str) else rate
        raise UserError(f"A keep rate is the share of patches kept, a number above 0 and at most 1, not {shown}.")
    return float(rate)


def kept_count(rate: float, patches: int) -> int:
    """Patches kept of ``patches`` at a keep rate: ``round(rate * patches)``, at least one."""
    return max(1, round(check_keep_rate(rate) * patches))


def best_first(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, from the highest down; equal scores prefer the lower index.

    Args:
        scores: Importance ``(batch, patches)``, higher = keep.
        count: Patches to keep.

    Returns:
        int64 indices ``(batch, count)``.
    """
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count]


def top_patches(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, in ascending index order; equal scores prefer the lower index.

    Args:
        scores: Importance ``(batch, patches)``, higher = keep.
        count: Patches to keep.

    Returns:
        int64 indices ``(batch, count)``.
    """
    return best_first(scores, count).sort(dim=-1).values


def gather_tokens(tokens: Tensor, keep_indices: Tensor, num_prefix_tokens: int) -> Tensor:
    """Keeps the prefix tokens and the chosen patches.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        keep_indices: Indices among the patches, ``(batch, kept)``.
        num_prefix_tokens: Tokens before the patches.

    Returns:
        ``(batch, prefix + kept, width)`` in the order of ``keep_indices``.
    """
    batch, length, _ = tokens.shape
    prefix = torch.arange(num_prefix_tokens, device=tokens.device).expand(batch, -1)
    chosen = torch.cat([prefix, keep_indices + num_prefix_tokens], dim=1)
    rows = chosen + length * torch.arange(batch, device=tokens.device).unsqueeze(1)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, chosen.shape)
