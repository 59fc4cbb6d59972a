"""What a pretraining did, and its rows for results.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patchranking.pretrain.progress import Progress
from patchranking.pretrain.schedule import CompressionSchedule

__all__ = ["MODEL", "PretrainReport"]

MODEL = "model"
"""Folder of the trained tower in that of a run."""


@dataclass(frozen=True)
class PretrainReport:
    """What a pretraining did.

    Attributes:
        n_images: Pictures trained on.
        skipped: Key -> why a picture was left out, of those to train and to test on.
        budget: Passes that were to be spent, those of the schedule's search among them.
        searched: Passes that the search spent.
        schedule: The compression.
        progress: What was spent, and what was measured along the way.
    """

    n_images: int
    skipped: dict[str, str]
    budget: float
    searched: float
    schedule: CompressionSchedule
    progress: Progress

    def rows(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A row for each evaluation; its budget includes what the search spent.

        Args:
            about: What all rows say, such as method, arm and seed.
        """
        none = {"knn": None, "linear_probe": None}
        return [{**about, **none, **row, "budget": self.searched + row["budget"]} for row in self.progress.rows]
