"""A fitted pruner, with tuned tokens or without."""

from __future__ import annotations

from torch import Tensor

from patchranking.methods.method import Encoding, Method, Style, reducing
from patchranking.pruner import Pruner
from patchranking.pruning.attach import Scorer
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["PatchRanking"]


class PatchRanking(Method):
    """A pruner as a method.

    Args:
        pruner: Fitted to the model.
        classes: Unit text features of the classes, ``(classes, features)``, where its tokens were tuned for them.
    """

    name = "patchranking"
    style = Style("#e2571e", "o")

    def __init__(self, pruner: Pruner, classes: Tensor | None = None) -> None:
        self.pruner, self.classes = pruner, classes
        self.tuned, self.prompts = pruner.tuned, pruner.prompts

    def at(self, tower: VisionTower, schedule: Schedule, seed: int = 0) -> Encoding:
        pruner = self.pruner.scheduled(schedule)
        return reducing(tower, schedule, pruner.reductions(), self.classes)

    def first_scorer(self, tower: VisionTower, block: int) -> Scorer:
        return self.pruner.predictor(block)
