"""EViT without training: the patches the class token attends to stay, one fused token stands for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.pruning.attach import Reduction
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["evit", "fuse"]


def fuse(tokens: Tensor, attention: Tensor, kept: int, num_prefix_tokens: int) -> Tensor:
    """Keeps the patches with the most attention and appends one token for the others (Liang et al., 2022, Eq. 5).

    The fused token is the sum of the dropped tokens, each times its attention, as the paper has it: not normalised.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        attention: Of the class token to the patches, ``(batch, patches)``.
        kept: Patches that stay.
        num_prefix_tokens: Tokens before the patches.

    Returns:
        ``(batch, prefix + kept + 1, width)``.
    """
    patches = top_patches(attention, kept)
    weights = attention.scatter(1, patches, 0).to(tokens.dtype)
    fused = torch.einsum("bp,bpd->bd", weights, tokens[:, num_prefix_tokens:])
    return torch.cat([gather_tokens(tokens, patches, num_prefix_tokens), fused.unsqueeze(1)], dim=1)


def evit(tower: VisionTower, block: int, kept: int) -> Reduction:
    """Returns EViT's reduction before ``block``, by the attention of that block, averaged over heads.

    Args:
        tower: The image encoder; it needs a class token.
        block: Patches are dropped before this block.
        kept: Patches that stay, the fused token not counted.
    """
    return lambda tokens: fuse(tokens, tower.class_attention(tokens, block), kept, tower.num_prefix_tokens)
