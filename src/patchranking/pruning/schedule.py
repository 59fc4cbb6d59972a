"""Where patches go and how many stay."""

from __future__ import annotations

from dataclasses import dataclass

from patchranking.errors import UserError
from patchranking.pruning.select import check_keep_rate, kept_count
from patchranking.towers import VisionTower

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """One-shot pruning: before ``block``, keep the share ``keep`` of the patches.

    Attributes:
        block: Block index, zero-based; the paper's "4th layer" is 3.
        keep: Share of the patches kept, prefix tokens excluded, above 0 and at most 1.
    """

    block: int = 3
    keep: float = 0.6

    def __post_init__(self) -> None:
        check_keep_rate(self.keep)

    def check(self, tower: VisionTower) -> None:
        """Raises UserError when the tower has no such block."""
        if not 0 <= self.block < tower.depth:
            raise UserError(f"The tower has blocks 0 to {tower.depth - 1}; it cannot prune before block {self.block}.")

    def kept(self, num_patches: int) -> int:
        """Patches kept of ``num_patches``."""
        return kept_count(self.keep, num_patches)

    def to_dict(self) -> dict[str, float]:
        """``{"block": keep}``, as it stands in config.json and results.json."""
        return {str(self.block): self.keep}

    @classmethod
    def from_dict(cls, stages: dict[str, float]) -> Schedule:
        """The inverse of ``to_dict``."""
        ((block, keep),) = stages.items()
        return cls(int(block), keep)
