"""How image encoders of transformers turn the tokens after their last block into one vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from patchranking.errors import UserError
from patchranking.towers.base import masked, weighted

__all__ = [
    "Pool",
    "by_attention",
    "by_pooler",
    "class_token",
    "class_token_and_mean",
    "class_token_normed_twice",
    "mean_of_patches",
    "mean_of_raw_patches",
]


class Encoder(Protocol):
    """What pooling reads of a tower: the encoder of transformers, its last norm, and its tokens before the patches."""

    module: Any
    norm: Any
    num_prefix_tokens: int


Pool = Callable[[Encoder, Tensor, Tensor | None], Tensor]
"""Maps a tower, tokens ``(batch, prefix + patches, width)`` and any gates of the patches to ``(batch, channels)``."""


def class_token(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """The class token, after the last norm."""
    return tower.norm(tokens[:, 0, :])


def class_token_normed_twice(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """The class token, after the last norm and after the same norm again, as BLIP has it."""
    return tower.norm(tower.norm(tokens)[:, 0, :])


def by_pooler(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """What the pooler makes of the class token; where the model has none, that token."""
    normed, pooler = tower.norm(tokens), tower.module.pooler
    return normed[:, 0, :] if pooler is None else pooler(normed)


def class_token_and_mean(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """The class token beside the mean of the patches."""
    normed = tower.norm(tokens)
    return torch.cat([normed[:, 0], _mean(tower, normed, gates)], dim=1)


def mean_of_patches(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """The mean of the patches after the last norm."""
    return _mean(tower, tower.norm(tokens), gates)


def mean_of_raw_patches(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """The mean of the patches as the last block leaves them."""
    return _mean(tower, tokens, gates)


def by_attention(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    """What a learned query finds among the patches, as SigLIP has it.

    Raises:
        UserError: If the model was built without its pooling head.
    """
    head: Any = getattr(tower.module, "head", None)
    if head is None:
        raise UserError("This SigLIP has no pooling head, and so no image feature: load it with vision_use_head=True.")
    normed = tower.norm(tokens)
    if gates is None:
        return head(normed)
    with masked(head.attention, gates, (head.attention.num_heads, 1)):
        return head(normed)


def _mean(tower: Encoder, tokens: Tensor, gates: Tensor | None) -> Tensor:
    return (tokens if gates is None else weighted(tokens, gates))[:, tower.num_prefix_tokens :].mean(dim=1)
