"""Golden ranking: searches that find which patches of an image matter (Phase I)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchranking.pruning.select import gather_tokens
from patchranking.ranking.scores import feature_damage
from patchranking.ranking.windows import patch_means, survivors, windows
from patchranking.towers import VisionTower

__all__ = ["Ranking", "leave_out"]

_VARIANTS_PER_BATCH = {"cpu": 16}
"""Few on a CPU, whose caches then hold the activations."""
_VARIANTS_PER_BATCH_ELSEWHERE = 512


@dataclass(frozen=True)
class Ranking:
    """The golden ranking of a batch of images.

    Attributes:
        importance: ``(batch, patches)`` float32, higher = keep.
        removal_order: ``(batch, patches)`` int64, the patch to drop first comes first.
    """

    importance: Tensor
    removal_order: Tensor

    @classmethod
    def from_importance(cls, importance: Tensor) -> Ranking:
        """Orders removal by ascending importance; equal patches go by index."""
        return cls(importance, importance.argsort(dim=-1, stable=True))


@torch.inference_mode()
def leave_out(tower: VisionTower, pixels: Tensor, block: int = 3, window: int = 2, stride: int = 1) -> Ranking:
    """Scores every patch by the damage its windows do when they are left out (paper, section 3.1, Eq. 1-4).

    Blocks before ``block`` run once per image; the variants of all images share batches through the others.

    Args:
        tower: The image encoder.
        pixels: Preprocessed images ``(batch, 3, height, width)``.
        block: Patches are removed before this block.
        window: Side of the removed window in patches (the paper's r).
        stride: Step between windows in patches.

    Returns:
        The ranking by feature preservation.

    Raises:
        UserError: If the window does not fit the grid or the stride leaves gaps.
    """
    removed = windows(tower.grid, window, stride)
    kept = survivors(removed, tower.num_patches).to(pixels.device)
    tokens = tower.embed(pixels, block)
    full = tower.pool(tower.run(tokens, block))
    per_batch = _VARIANTS_PER_BATCH.get(pixels.device.type, _VARIANTS_PER_BATCH_ELSEWHERE)
    damage = []
    for variants in torch.arange(len(pixels) * len(kept), device=pixels.device).split(per_batch):
        image, left_out = variants // len(kept), variants % len(kept)
        pruned = gather_tokens(tokens[image], kept[left_out], tower.num_prefix_tokens)
        damage.append(feature_damage(tower.pool(tower.run(pruned, block)), full[image]))
    return Ranking.from_importance(patch_means(torch.cat(damage).view(len(pixels), -1), removed, tower.num_patches))
