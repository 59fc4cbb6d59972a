"""What every stage of a method makes of one picture: which patches go on, and which of them in one token."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchranking.evaluation.examples import stages_passed
from patchranking.evaluation.rows import Entry
from patchranking.methods import PatchRanking
from patchranking.methods.batch import Batch
from patchranking.methods.evit import EViT
from patchranking.methods.method import BetweenHalves, Dropping
from patchranking.pruning.inside import Inside, Left, run_inside
from patchranking.pruning.schedule import Schedule
from patchranking.towers.base import Attended

__all__ = ["Stage", "first_ranking", "some", "traced"]


@dataclass(frozen=True)
class Stage:
    """What goes on after a stage.

    Attributes:
        block: The block that patches go before, or inside.
        tokens: Number of the token in which each patch goes on, int64 ``(rows, cols)``; -1 where it does not.
    """

    block: int
    tokens: np.ndarray

    @property
    def count(self) -> int:
        """How many tokens of patches go on."""
        return int(np.unique(self.tokens[self.tokens >= 0]).size)

    @property
    def kept(self) -> np.ndarray:
        """Which patches go on, boolean ``(rows, cols)``."""
        return np.asarray(self.tokens >= 0)


def first_ranking(entry: Entry, batch: Batch) -> Tensor | None:
    """Importance by which the first stage chooses, ``(batch, patches)``, higher = keep; None where nothing is."""
    method, tower, block = entry.method, batch.tower, entry.encoding.schedule.block
    if isinstance(method, PatchRanking):
        scores: Tensor = method.pruner.predictor(block)(batch.entering(block))
        return scores
    if isinstance(method, Dropping):
        return method.scorer(tower, block, 0)(batch.entering(block))
    if isinstance(method, EViT):
        return tower.class_attention(batch.entering(block), block)
    return None


def traced(entry: Entry, batch: Batch) -> list[Stage]:
    """The stages of a method on one picture.

    Args:
        entry: A method with its encoding.
        batch: A batch of one.

    Returns:
        One for each stage of the schedule; none where the method has no patches of the whole picture.
    """
    tower, schedule = batch.tower, entry.encoding.schedule
    if isinstance(entry.method, BetweenHalves):
        found = _inside(entry.method, schedule, batch)
    elif (passed := stages_passed(entry, batch)) is None:
        found = {}
    else:
        own = torch.arange(tower.num_patches, device=passed.device)
        found = {
            block: torch.where(passed[0] >= number, own, -1) for number, block in enumerate(schedule.stages, start=1)
        }
    return [Stage(block, tokens.view(tower.grid).cpu().numpy()) for block, tokens in found.items()]


def some(stages: list[Stage], number: int = 5) -> list[Stage]:
    """So many of the stages, evenly spread, the last one among them; those that change nothing left out."""
    counts = [*(stage.tokens.size for stage in stages[:1]), *(stage.count for stage in stages)]
    changing = [stage for stage, before in zip(stages, counts, strict=False) if stage.count < before] or stages[-1:]
    places = np.linspace(0, len(changing), min(number, len(changing)) + 1)[1:].round().astype(int) - 1
    return [changing[place] for place in places]


def _inside(method: BetweenHalves, schedule: Schedule, batch: Batch) -> dict[int, Tensor]:
    """Block -> the token in which each patch goes on, ``(patches,)``, watched while the method runs."""
    tower, fuses = batch.tower, isinstance(method, EViT)
    now = torch.arange(tower.num_patches, device=batch.pixels.device)
    found: dict[int, Tensor] = {}

    def watched(block: int, reduce: Inside) -> Inside:
        def run(attended: Attended, sizes: Tensor | None) -> Left:
            nonlocal now
            left = reduce(attended, sizes)
            if left.into:
                now = left.into[0]()[0][now]
            elif left.places is not None:
                places = left.places[0, :-1] if fuses else left.places[0]  # the last is the token of those that go
                after = now.new_full((attended.tokens.shape[1] - tower.num_prefix_tokens,), -1)
                after[places] = torch.arange(len(places), device=now.device)
                now = torch.where(now >= 0, after[now], -1)
            found[block] = now
            return left

        return run

    reductions = {block: watched(block, do) for block, do in method.reductions(tower, schedule).items()}
    run_inside(tower, batch.entering(schedule.block), schedule.block, reductions)
    return {block: tokens for block, tokens in found.items() if block in schedule.stages}
