"""Other ways to choose the patches, one file a method, at the same block and the same counts."""

from __future__ import annotations

from collections.abc import Callable

from patchranking.pruning.attach import Reduction, Scorer
from patchranking.pruning.baselines.class_attention import class_attention
from patchranking.pruning.baselines.evit import evit
from patchranking.pruning.baselines.random import random
from patchranking.towers import VisionTower

__all__ = ["BASELINES", "REDUCTIONS"]

BASELINES: dict[str, Callable[[VisionTower, int, int], Scorer]] = {
    "random": random,
    "cls-attention": class_attention,
    "evit": class_attention,
}
"""Baseline name -> function of (tower, block, seed) that makes its scorer."""

REDUCTIONS: dict[str, Callable[[VisionTower, int, int], Reduction]] = {"evit": evit}
"""Baselines that do more than drop patches: name -> function of (tower, block, kept) that makes its reduction."""
