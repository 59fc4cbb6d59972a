"""EViT without training: the patches the class token attends to stay, one fused token stands for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.method import Encoding, Method, Style, reducing
from patchranking.pruning.attach import Reduced, Reduction
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["EViT", "fuse"]


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


class EViT(Method):
    """Keeps patches by the class token's attention in the block that follows, and fuses the others, at every stage."""

    name = "evit"
    style = Style("#0f9d82", "^")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        def stage(block: int, kept: int) -> Reduction:
            return lambda tokens: Reduced(
                fuse(tokens, tower.class_attention(tokens, block), kept, tower.num_prefix_tokens)
            )

        counts = schedule.kept(tower.num_patches)
        return reducing(tower, schedule, {block: stage(block, kept) for block, kept in counts.items()})
