"""Multiply-accumulates (MACs) of a pruned encoder by formula, and schedules with the MACs of another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from patchranking.errors import UserError
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["analytic_macs", "keep_at_macs", "nearest_in_macs", "with_macs_of"]


def analytic_macs(
    tower: VisionTower, features: int, schedule: Schedule, visual_tokens: int = 0, inside: bool = False
) -> float:
    """MACs of one image by formula, without the predictor.

    Per block with T tokens of width D and MLP width H: ``4 T D^2 + 2 T D H`` for the projections and the MLP and
    ``2 T^2 D`` for attention; a gated MLP takes ``3 T D H``. What a pooling attention costs is left out.

    Args:
        tower: The image encoder.
        features: Size of the output feature.
        schedule: Where patches are dropped and how many stay.
        visual_tokens: Learnable tokens that run alongside the patches.
        inside: Whether patches go between the attention and the MLP of the schedule's blocks, not before these.
    """
    width, mlp = tower.width, tower.mlp_layers * tower.mlp_width

    def attention(tokens: int) -> int:
        return 4 * tokens * width**2 + 2 * tokens**2 * width

    area = (tower.image_size[0] // tower.grid[0]) * (tower.image_size[1] // tower.grid[1])
    embedding = tower.num_patches * 3 * area * width
    stages = schedule.kept(tower.num_patches)
    others = tower.num_prefix_tokens + visual_tokens
    patches, blocks = tower.num_patches, 0
    for block in range(tower.depth):
        left = stages.get(block, patches)
        blocks += attention(others + (patches if inside else left)) + (others + left) * width * mlp
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


def with_macs_of(tower: VisionTower, shape: Schedule, reference: Schedule) -> Schedule:
    """A schedule at the keep rate at which it has the MACs of a reference; see ``keep_at_macs``.

    Raises:
        UserError: If it cannot have so few.
    """
    features = tower.feature_size
    share = analytic_macs(tower, features, reference) / analytic_macs(tower, features, reference.at(1.0))
    return shape.at(keep_at_macs(tower, shape, share))


def keep_at_macs(tower: VisionTower, schedule: Schedule, share: float, visual_tokens: int = 0) -> float:
    """The keep rate at which a schedule has a share of the dense MACs.

    Found by bisection over the numbers of patches that may be left at the end, at each of which the schedule keeps its
    proportions (``Schedule.at``); MACs are by formula, without the predictor. Of 144 patches, one is about 0.4 % of the
    dense MACs, so the share is met within 0.2 %.

    Args:
        tower: The image encoder.
        schedule: Its shape: the blocks, and which part of the dropped patches goes at each.
        share: MACs as a share of those of the dense encoder, above 0 and at most 1.
        visual_tokens: Learnable tokens that run alongside the patches, and cost MACs too.

    Returns:
        The keep rate with the nearest MACs.

    Raises:
        UserError: If the share is none, or less than the schedule costs with a single patch at the end.
    """
    patches, features = tower.num_patches, tower.feature_size
    dense = analytic_macs(tower, features, schedule.at(1.0))
    if not 0 < share <= 1:
        raise UserError(f"A share of the dense MACs is a number above 0 and at most 1, not {share:g}.")

    def share_at(left: int) -> float:
        return analytic_macs(tower, features, schedule.at(left / patches), visual_tokens) / dense

    if share < share_at(1):
        raise UserError(
            f"Dropping patches before block {schedule.block} leaves at least {share_at(1):.0%} of the dense MACs: ask "
            f"for more than {share:.0%}, or drop them earlier."
        )
    above = bisect_left(range(1, patches), share, key=share_at) + 1
    nearest = min((above - 1 or 1, above), key=lambda left: abs(share_at(left) - share))
    return nearest / patches
