"""Keeps patches at random: the baseline every method must beat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from patchranking.methods.batch import Batch
from patchranking.methods.method import Attachable, Encoding, Style, by_importance
from patchranking.pruning.attach import Reduction
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.stages import by_scores
from patchranking.towers import VisionTower

__all__ = ["Random", "random_importance"]


class Random(Attachable):
    """Uniform scores, of every image its own; attached, where images have no numbers, all have those of the first."""

    name = "random"
    style = Style("#8d939e", "d")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        def importance(batch: Batch) -> Tensor:
            return random_importance(tower.num_patches, batch.images, seed).to(tower.device)

        return Encoding(tower, schedule, by_importance(tower, schedule, importance))

    def steps(self, tower: VisionTower, schedule: Schedule, seed: int) -> dict[int, Reduction]:
        drawn = random_importance(tower.num_patches, [0], seed)
        return by_scores(tower, schedule, {schedule.block: lambda t: drawn.to(t.device).expand(len(t), -1)})


def random_importance(patches: int, images: Iterable[int], seed: int) -> Tensor:
    """Uniform scores ``(images, patches)``; those of an image depend on its index and the seed alone."""
    seeds = [int(np.random.SeedSequence([seed, image]).generate_state(1)[0]) for image in images]
    return torch.stack([torch.rand(patches, generator=torch.Generator().manual_seed(own)) for own in seeds])
