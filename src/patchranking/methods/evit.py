"""EViT without training: the patches the class token attends to stay, one fused token stands for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.method import BetweenHalves, Style
from patchranking.pruning.inside import Inside, Left
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower
from patchranking.towers.base import Attended

__all__ = ["EViT", "fuse"]


def fuse(tokens: Tensor, attention: Tensor, kept: int, num_prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Keeps the patches with the most attention and appends one token for the others (Liang et al., 2022, Eq. 5).

    The fused token is the sum of the dropped tokens, each times its attention, as the paper has it: not normalised.

    Args:
        tokens: ``(batch, prefix + patches, width)``.
        attention: Of the class token to the patches, ``(batch, patches)``.
        kept: Patches that stay.
        num_prefix_tokens: Tokens before the patches.

    Returns:
        Tokens ``(batch, prefix + kept + 1, width)`` and the patches at whose places they go on, ``(batch, kept + 1)``:
        the fused one at that of the others with the most attention.
    """
    patches = top_patches(attention, kept)
    weights = attention.scatter(1, patches, 0).to(tokens.dtype)
    fused = torch.einsum("bp,bpd->bd", weights, tokens[:, num_prefix_tokens:])
    places = torch.cat([patches, weights.argmax(1, keepdim=True)], dim=1)
    return torch.cat([gather_tokens(tokens, patches, num_prefix_tokens), fused.unsqueeze(1)], dim=1), places


class EViT(BetweenHalves):
    """Keeps patches by the class token's attention and fuses the others, inside every block of the schedule.

    Patches go between a block's attention, which chooses them, and its MLP (section 3.1); fused tokens of earlier
    blocks are not counted. The authors' places are the fourth, seventh and tenth layers of 12.
    """

    name = "evit"
    style = Style("#0f9d82", "^")
    needs_class_token = True
    places = (3, 6, 9)

    def reductions(self, tower: VisionTower, schedule: Schedule) -> dict[int, Inside]:
        prefix = tower.num_prefix_tokens

        def keeping(kept: int) -> Inside:
            def reduce(attended: Attended, sizes: Tensor | None) -> Left:
                if kept >= attended.tokens.shape[1] - prefix:
                    return Left(attended.tokens)
                return Left(*fuse(attended.tokens, tower.class_attention_in(attended), kept, prefix))

            return reduce

        return {block: keeping(kept) for block, kept in schedule.kept(tower.num_patches).items()}
