"""The model as it is."""

from __future__ import annotations

from patchranking.methods.method import Encoded, Encoding, Method, Style
from patchranking.pruning.schedule import Schedule
from patchranking.towers import VisionTower

__all__ = ["Dense"]


class Dense(Method):
    """The unpruned model, whatever the schedule."""

    name = "dense"
    style = Style("#6b7280", "D")

    def at(self, tower: VisionTower, schedule: Schedule, seed: int) -> Encoding:
        return Encoding(tower, schedule.at(1.0), lambda batch: Encoded(batch.features))
