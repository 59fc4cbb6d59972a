"""EViT without training: the patches the class token attends to stay, one fused token stands for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.methods.batch import Batch
from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.towers import VisionTower

__all__ = ["EViT", "evit", "fuse"]


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


def evit(tower: VisionTower, batch: Batch, schedule: Schedule) -> Tensor:
    """Features under EViT: patches go between a block's attention, which chooses them, and its MLP (section 3.1).

    Args:
        tower: The image encoder.
        batch: The images.
        schedule: The blocks that patches go in, and how many stay; the fused tokens of earlier blocks are not counted.

    Returns:
        ``(batch, features)``.
    """
    start, prefix = schedule.block, tower.num_prefix_tokens
    tokens = batch.entering(start)
    positions = torch.arange(tower.num_patches, device=tokens.device).expand(len(tokens), -1)
    for block, kept in schedule.kept(tower.num_patches).items():
        attended = tower.attend(tower.run(tokens, start, block, positions=positions), block, positions=positions)
        tokens = attended.tokens
        if kept < tokens.shape[1] - prefix:
            tokens, places = fuse(tokens, tower.class_attention_in(attended), kept, prefix)
            positions = positions.gather(1, places)
        tokens, start = tower.feed_forward(tokens, block), block + 1
    return tower.pool(tower.run(tokens, start, positions=positions))


class EViT(Method):
    """Keeps patches by the class token's attention and fuses the others, inside every block of the schedule."""

    name = "evit"
    style = Style("#0f9d82", "^")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        return Encoding(tower, schedule, lambda batch: Encoded(evit(tower, batch, schedule)), inside=True)
