"""True greedy search: remove a few patches, score the survivors again. Slow; the reference for quality."""

from __future__ import annotations

import torch
from torch import Tensor

from patchranking.errors import UserError
from patchranking.ranking.objectives import Objective, preservation
from patchranking.ranking.ranking import Ranking
from patchranking.ranking.variants import variant_damage
from patchranking.ranking.windows import survivors
from patchranking.towers import VisionTower

__all__ = ["iterative"]


@torch.inference_mode()
def iterative(
    tower: VisionTower, pixels: Tensor, block: int = 3, group: int = 4, objective: Objective = preservation
) -> Ranking:
    """Removes the patches that do the least damage, ``group`` at a time, and scores the survivors again.

    Needs about ``patches ** 2 / (2 * group)`` forward passes of an image through the later blocks.

    Args:
        tower: The image encoder.
        pixels: Preprocessed images ``(batch, 3, height, width)``.
        block: Patches are removed before this block.
        group: Patches removed a round.
        objective: What counts as damage.

    Returns:
        The ranking; the importance of a patch is its place in the removal order, between 0 and 1.

    Raises:
        UserError: If a pruner is attached to the model, or the group is below 1.
    """
    if group < 1:
        raise UserError(f"The iterative search removes at least 1 patch a round, not {group}.")
    tower.check_dense()
    tokens = tower.embed(pixels, block)
    damage = objective(tower.pool(tower.run(tokens, block)))
    alive = torch.arange(tower.num_patches, device=pixels.device).expand(len(tokens), -1)
    removed = []
    while (left := alive.shape[1]) > 1:
        others = survivors(torch.arange(left)[:, None], left).to(pixels.device)
        found = variant_damage(tower, tokens, block, alive[:, others], damage)
        order = found.argsort(dim=1, stable=True)
        removed.append(alive.gather(1, order[:, :group]))
        alive = alive.gather(1, order[:, group:].sort(dim=1).values)
    return Ranking.from_order(torch.cat([*removed, alive], dim=1))
