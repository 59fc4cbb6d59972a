"""Where patches go and how many stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Self

from patchranking.errors import UserError
from patchranking.pruning.select import check_keep_rate, kept_count
from patchranking.towers import VisionTower

__all__ = ["Schedule"]

_TWELFTHS = (1, 2, 4, 6, 8)
"""Of the blocks, how many run before each stage of the default."""


@dataclass(frozen=True)
class Schedule:
    """Pruning in one or more stages: which share of all patches enters a block.

    ``Schedule({3: 0.6})`` is the paper's one-shot schedule, ``Schedule({3: 0.9, 5: 0.8, 7: 0.7, 9: 0.6})`` its
    progressive one (Table 4). Counts are fixed by the number of patches, so shapes are static.

    Attributes:
        stages: Block index, zero-based (the paper's "4th layer" is 3) -> share of the patches kept, prefix tokens
            excluded, above 0, at most 1, and never more than before.
    """

    stages: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.stages:
            raise UserError("A schedule needs at least one stage: block index -> keep rate, for example {3: 0.6}.")
        object.__setattr__(self, "stages", dict(sorted(self.stages.items())))
        rates = [check_keep_rate(rate) for rate in self.stages.values()]
        if rates != sorted(rates, reverse=True):
            raise UserError(f"Dropped patches cannot come back: the keep rates {rates} must not increase with depth.")

    def __hash__(self) -> int:
        return hash(tuple(self.stages.items()))

    @classmethod
    def spread(cls, blocks: Sequence[int], keep: float) -> Self:
        """Drops equal shares before each of ``blocks`` until ``keep`` is left; one block is one-shot pruning."""
        steps = max(1, len(blocks))
        drop = 1 - check_keep_rate(keep)
        return cls({block: keep + drop * (steps - stage) / steps for stage, block in enumerate(sorted(blocks), 1)})

    @classmethod
    def default(cls, depth: int, keep: float, first: int | None = None) -> Self:
        """Five stages, each of which lets the same share through: before blocks 1, 2, 4, 6 and 8 of 12.

        Args:
            depth: Blocks of the model; stages are at the same parts of the way, none before the first block has run.
            keep: Share kept after the last stage.
            first: The block of the first stage, in place of those up to there.
        """
        blocks = {min(depth - 1, max(1, round(depth * place / 12))) for place in _TWELFTHS}
        if first is not None:
            blocks = {first, *(block for block in blocks if block > first)}
        return cls.even([*blocks], keep)

    @classmethod
    def even(cls, blocks: Sequence[int], keep: float) -> Self:
        """Lets the same share through before each of ``blocks``, so that ``keep`` is left in the end."""
        check_keep_rate(keep)
        places = sorted(set(blocks))
        return cls({block: keep ** (stage / len(places)) for stage, block in enumerate(places, 1)})

    @property
    def block(self) -> int:
        """The first pruned block."""
        return next(iter(self.stages))

    @property
    def keep(self) -> float:
        """Share of the patches that reaches the end."""
        return self.stages[self._last]

    @property
    def _last(self) -> int:
        return list(self.stages)[-1]

    def at(self, keep: float) -> Schedule:
        """The same schedule for another final keep rate: all shares are raised to one power.

        So a stage that lets much of what comes through still does, and early stages drop enough where little is to be
        left. Where nothing is dropped, every stage lets the same share through.
        """
        if keep == self.keep:
            return self
        check_keep_rate(keep)
        if self.keep > 1 - 1e-6:
            return Schedule.even(list(self.stages), keep)
        power = log(keep) / log(self.keep)
        return Schedule({block: max(keep, rate**power) for block, rate in self.stages.items()} | {self._last: keep})

    def check(self, tower: VisionTower) -> None:
        """Raises UserError when the tower lacks one of the blocks."""
        for block in self.stages:
            if not 0 <= block < tower.depth:
                raise UserError(f"The tower has blocks 0 to {tower.depth - 1}; it cannot prune before block {block}.")

    def kept(self, num_patches: int) -> dict[int, int]:
        """Block -> patches kept of ``num_patches``."""
        return {block: kept_count(rate, num_patches) for block, rate in self.stages.items()}

    def to_dict(self) -> dict[str, float]:
        """``{"block": keep, ...}``, as it stands in config.json and results.json."""
        return {str(block): rate for block, rate in self.stages.items()}

    @classmethod
    def from_dict(cls, stages: Mapping[str, float]) -> Self:
        """The inverse of ``to_dict``."""
        return cls({int(block): rate for block, rate in stages.items()})
