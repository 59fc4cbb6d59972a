"""Where patches go and how many stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from patchranking.errors import UserError
from patchranking.pruning.select import check_keep_rate, kept_count
from patchranking.towers import VisionTower

__all__ = ["Schedule"]

_SHARES = (3, 2, 2, 1)
"""Of the patches that go, how many go at each stage of the default."""


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
    def default(cls, first: int, depth: int, keep: float) -> Self:
        """Four stages from block ``first`` on, at equal distances; the early ones drop more.

        From block 2 of 12 they are 2, 4, 6 and 8, and drop 3, 2, 2 and 1 of every 8 patches that go.
        """
        blocks = [first + round(stage * (depth - first) / (len(_SHARES) + 1)) for stage in range(len(_SHARES))]
        gone = accumulate(_SHARES)
        left = [1 - (1 - keep) * share / sum(_SHARES) for share in gone]
        return cls(dict(zip(blocks, [*left[:-1], keep], strict=True)))

    @staticmethod
    def first_block(depth: int) -> int:
        """Where the default begins: a sixth of the way in."""
        return max(1, round(depth / 6))

    @property
    def block(self) -> int:
        """The first pruned block."""
        return next(iter(self.stages))

    @property
    def keep(self) -> float:
        """Share of the patches that reaches the end."""
        return list(self.stages.values())[-1]

    def at(self, keep: float) -> Schedule:
        """The same schedule for another final keep rate: the shares removed by the stages keep their proportions.

        Where nothing is removed there are no proportions, and every stage removes the same.
        """
        if keep == self.keep:
            return self
        if self.keep > 1 - 1e-6:
            return Schedule.spread(list(self.stages), keep)
        ratio = (1 - check_keep_rate(keep)) / (1 - self.keep)
        return Schedule({block: keep + (rate - self.keep) * ratio for block, rate in self.stages.items()})

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
