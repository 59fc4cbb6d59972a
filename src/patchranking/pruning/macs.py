"""Multiply-accumulates (MACs) of a pruned encoder by formula, and schedules with the MACs of another."""

from __future__ import annotations

from collections.abc import Iterable

from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["analytic_macs", "nearest_in_macs"]


def analytic_macs(
    tower: VisionTower, features: int, schedule: Schedule, visual_tokens: int = 0, inside: bool = False
) -> float:
    """MACs of one image by formula, without the predictor.

    Per block with T tokens of width D and MLP width H: ``4 T D^2 + 2 T D H`` for the projections and the MLP and
    ``2 T^2 D`` for attention. What a pooling attention costs is left out.

    Args:
        tower: The image encoder.
        features: Size of the output feature.
        schedule: Where patches are dropped and how many stay.
        visual_tokens: Learnable tokens that run alongside the patches.
        inside: Whether patches go between the attention and the MLP of the schedule's blocks, not before these.
    """
    width, mlp = tower.width, tower.mlp_width

    def attention(tokens: int) -> int:
        return 4 * tokens * width**2 + 2 * tokens**2 * width

    area = (tower.image_size[0] // tower.grid[0]) * (tower.image_size[1] // tower.grid[1])
    embedding = tower.num_patches * 3 * area * width
    stages = schedule.kept(tower.num_patches)
    others = tower.num_prefix_tokens + visual_tokens
    patches, blocks = tower.num_patches, 0
    for block in range(tower.depth):
        left = stages.get(block, patches)
        blocks += attention(others + (patches if inside else left)) + 2 * (others + left) * width * mlp
        patches = left
    return embedding + blocks + width * features


def nearest_in_macs(
    tower: VisionTower, candidates: Iterable[Schedule], reference: Schedule, inside: bool = False
) -> Schedule:
    """The candidate whose MACs are nearest to those of a reference; the first of equals.

    Args:
        tower: The image encoder.
        candidates: Schedules to choose from.
        reference: Drops patches before its blocks.
        inside: Where the candidates' patches go, as in ``analytic_macs``.
    """
    aim = analytic_macs(tower, 0, reference)
    return min(candidates, key=lambda schedule: abs(analytic_macs(tower, 0, schedule, inside=inside) - aim))
