"""Other ways to choose the patches, one file a method, before the same blocks and at the same counts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from patchranking.methods.a_vit import a_vit
from patchranking.methods.centre import centre_crop
from patchranking.methods.class_attention import class_attention
from patchranking.methods.evit import evit
from patchranking.methods.low_res import low_res, low_res_schedule
from patchranking.methods.random import random
from patchranking.methods.tome import tome, tome_schedule
from patchranking.pruning.attach import Reduction, Scorer
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import Survivors, by_scores
from patchranking.towers import VisionTower

__all__ = ["BASELINES", "ENCODERS", "baseline_reductions"]

BASELINES: dict[str, Callable[[VisionTower, int, int], Scorer]] = {
    "random": random,
    "centre-crop": centre_crop,
    "cls-attention": class_attention,
    "evit": class_attention,
}
"""Baseline name -> function of (tower, block, seed) that makes its scorer."""

ENCODERS: dict[
    str,
    tuple[
        Callable[[VisionTower, Schedule], Schedule],
        Callable[[VisionTower, Tensor, Schedule], Tensor],
    ],
] = {
    "a-vit": (lambda tower, beside: beside, a_vit),
    "tome": (tome_schedule, tome),
    "low-res": (low_res_schedule, low_res),
}
"""Baselines that do more than drop patches before some blocks: name -> function of (tower, schedule of the others) that
makes their own, at the same counts or the same MACs, and function of (tower, pixels, schedule) that encodes."""


def baseline_reductions(
    name: str, tower: VisionTower, schedule: Schedule, seed: int, watch: Survivors | None = None
) -> dict[int, Reduction]:
    """Reductions of a baseline at the blocks and the counts of a schedule.

    Args:
        name: A key of ``BASELINES``.
        tower: The image encoder.
        schedule: Where patches go and how many stay.
        seed: Of the random baseline.
        watch: Told which patches stay; ``evit``, which mixes patches, tells nothing.
    """
    if name == "evit":
        return {block: evit(tower, block, kept) for block, kept in schedule.kept(tower.num_patches).items()}
    scored = list(schedule.stages) if name == "cls-attention" else [schedule.block]
    return by_scores(tower, schedule, {block: BASELINES[name](tower, block, seed) for block in scored}, watch)
