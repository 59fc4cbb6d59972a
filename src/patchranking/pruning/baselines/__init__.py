"""Other ways to choose the patches, one file a method, at the same block and the same counts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from patchranking.pruning.attach import Reduction, Scorer
from patchranking.pruning.baselines.a_vit import a_vit, a_vit_schedule
from patchranking.pruning.baselines.centre import centre_crop
from patchranking.pruning.baselines.class_attention import class_attention
from patchranking.pruning.baselines.evit import evit
from patchranking.pruning.baselines.low_res import low_res, low_res_schedule
from patchranking.pruning.baselines.random import random
from patchranking.pruning.baselines.tome import tome, tome_schedule
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["BASELINES", "ENCODERS", "REDUCTIONS"]

BASELINES: dict[str, Callable[[VisionTower, int, int], Scorer]] = {
    "random": random,
    "centre-crop": centre_crop,
    "cls-attention": class_attention,
    "evit": class_attention,
}
"""Baseline name -> function of (tower, block, seed) that makes its scorer."""

REDUCTIONS: dict[str, Callable[[VisionTower, int, int], Reduction]] = {"evit": evit}
"""Baselines that do more than drop patches: name -> function of (tower, block, kept) that makes its reduction."""

ENCODERS: dict[
    str,
    tuple[
        Callable[[VisionTower, int, int], Schedule],
        Callable[[VisionTower, Tensor, Schedule], Tensor],
    ],
] = {"a-vit": (a_vit_schedule, a_vit), "tome": (tome_schedule, tome), "low-res": (low_res_schedule, low_res)}
"""Baselines that act in more blocks than one, at the counts of the others or at their MACs: name -> function of (tower,
block, kept) that makes the schedule, and function of (tower, pixels, schedule) that encodes."""
