"""The paper's search: leave out one window of patches at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.ranking.objectives import Objective, preservation
from patchranking.ranking.ranking import Ranking
from patchranking.ranking.variants import variant_damage
from patchranking.ranking.windows import patch_means, survivors, windows
from patchranking.towers import VisionTower

__all__ = ["leave_out"]


@torch.inference_mode()
def leave_out(
    tower: VisionTower,
    pixels: Tensor,
    block: int = 3,
    window: int = 2,
    stride: int = 1,
    objective: Objective = preservation,
) -> Ranking:
    """Scores every patch by the damage its windows do when they are left out (paper, section 3.1, Eq. 1-4).

    Each patch is judged as if all patches outside its windows stayed. Blocks before ``block`` run once per image.

    Args:
        tower: The image encoder.
        pixels: Preprocessed images ``(batch, 3, height, width)``.
        block: Patches are removed before this block.
        window: Side of the removed window in patches (the paper's r).
        stride: Step between windows in patches.
        objective: What counts as damage.

    Returns:
        The ranking; the importance of a patch is the mean damage of its windows.

    Raises:
        UserError: If a pruner is attached to the model, the window does not fit the grid or the stride leaves gaps.
    """
    tower.check_dense()
    removed = windows(tower.grid, window, stride)
    kept = survivors(removed, tower.num_patches).to(pixels.device)
    tokens = tower.embed(pixels, block)
    damage = objective(tower.pool(tower.run(tokens, block)))
    found = variant_damage(tower, tokens, block, kept.expand(len(tokens), -1, -1), damage)
    return Ranking.from_importance(patch_means(found, removed, tower.num_patches))
