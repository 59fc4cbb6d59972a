"""What is compressed when: a piecewise constant schedule over the share of the budget, in a file that people read."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from patchranking.errors import UserError
from patchranking.files import replacing
from patchranking.pretrain.compression import Compression, check_compressible
from patchranking.towers import VisionTower

__all__ = ["CompressionSchedule", "Stage", "cosine_rate", "momentum_at", "monotone", "power_rate", "warmed_up"]

_HEADER = """\
# Compression over the share of the budget: each stage holds from its start on, until the next one.
# patch_size is in pixels, drop is the share of the patches that is dropped. Stages never get cheaper.
"""
_KEYS = {"start", "patch_size", "drop"}


@dataclass(frozen=True)
class Stage:
    """A compression from some share of the budget on.

    Attributes:
        start: Share of the budget, 0 <= start < 1.
        compression: What holds from there on.
    """

    start: float
    compression: Compression

    def __post_init__(self) -> None:
        number = isinstance(self.start, int | float) and not isinstance(self.start, bool)
        if not number or not 0 <= self.start < 1:
            raise UserError(f"A stage starts at a share of the budget, 0 or more and below 1, not {self.start!r}.")


@dataclass(frozen=True)
class CompressionSchedule:
    """Stages of compression over the share of the budget.

    Attributes:
        stages: In the order of their starts, the first at 0.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        starts = [stage.start for stage in self.stages]
        if not starts or starts[0] != 0:
            raise UserError("A schedule has one stage or more, and the first starts at 0.")
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise UserError(f"The stages of a schedule start one after the other, not at {_shares(starts)}.")

    @classmethod
    def constant(cls, compression: Compression) -> CompressionSchedule:
        """One compression throughout."""
        return cls((Stage(0.0, compression),))

    @classmethod
    def of(cls, compressions: Sequence[Compression]) -> CompressionSchedule:
        """Compressions that share the budget equally, neighbours that are equal made one stage."""
        changed = [place for place, one in enumerate(compressions) if not place or one != compressions[place - 1]]
        return cls(tuple(Stage(place / len(compressions), compressions[place]) for place in changed))

    @classmethod
    def two_phase(cls, patch_size: int, larger: int) -> CompressionSchedule:
        """Larger patches for 75 % of the budget, then the model's own, as FastDINOv2 and CLIPA do."""
        return cls((Stage(0.0, Compression(larger)), Stage(0.75, Compression(patch_size))))

    @property
    def compressions(self) -> tuple[Compression, ...]:
        """Every compression once, in the order in which they come."""
        return tuple(dict.fromkeys(stage.compression for stage in self.stages))

    def at(self, share: float) -> Compression:
        """The compression at a share of the budget, 0 to 1."""
        starts = [stage.start for stage in self.stages]
        return self.stages[max(0, bisect_right(starts, share) - 1)].compression

    def check(self, tower: VisionTower, cost: Callable[[Compression], float]) -> None:
        """Checks that a tower can run under every stage, and that none is cheaper than the one before it.

        Args:
            tower: The image encoder.
            cost: Of a compression.

        Raises:
            UserError: If a patch size does not fit, or compression tightens.
        """
        for compression in self.compressions:
            check_compressible(tower, compression)
        for earlier, later in pairwise(self.stages):
            if cost(later.compression) < cost(earlier.compression):
                raise UserError(
                    f"The schedule is not monotone: from {later.start:.0%} of the budget, {later.compression} cost "
                    f"less than {earlier.compression} before it: compression may only relax, so put cheaper ones first."
                )

    def save(self, path: Path) -> None:
        """Writes the schedule as YAML that a person can edit."""
        stages = [
            {"start": s.start, "patch_size": s.compression.patch_size, "drop": s.compression.drop} for s in self.stages
        ]
        with replacing(path) as partial:
            partial.write_text(_HEADER + yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CompressionSchedule:
        """Reads what ``save`` wrote, or a person did.

        Raises:
            UserError: If there is no such file, it is no schedule, or a value is wrong.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The schedule '{path}' cannot be read: {getattr(error, 'strerror', error)}.") from error
        except yaml.YAMLError as error:
            raise UserError(f"The schedule '{path}' is no YAML: {' '.join(str(error).split())[:200]}.") from error
        stages = content.get("stages") if isinstance(content, dict) else None
        if not isinstance(stages, list) or not stages or set(content) != {"stages"}:
            raise UserError(f"The schedule '{path}' has to be a list 'stages' of start, patch_size and drop.")
        try:
            return cls(tuple(_stage(stage) for stage in stages))
        except UserError as error:
            raise UserError(f"In the schedule '{path}': {error}") from error


def _stage(given: Any) -> Stage:
    if not isinstance(given, dict) or not {"start", "patch_size"} <= set(given) <= _KEYS:
        raise UserError(f"A stage has start, patch_size and drop, and nothing else, not {given!r}.")
    return Stage(given["start"], Compression(given["patch_size"], given.get("drop", 0.0)))


def _shares(starts: Sequence[float]) -> str:
    return ", ".join(f"{start:g}" for start in starts)


def monotone(compressions: Sequence[Compression], cost: Callable[[Compression], float]) -> list[Compression]:
    """The same compressions with each replaced by the dearest up to it: compression may only relax.

    Args:
        compressions: The best of each stage, in order.
        cost: Of a compression.
    """
    found: list[Compression] = []
    for one in compressions:
        found.append(one if not found or cost(one) >= cost(found[-1]) else found[-1])
    return found


def cosine_rate(share: float) -> float:
    """Half a cosine from 1 to 0 over the share of the budget."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))


def power_rate(share: float, power: float = 2.0) -> float:
    """``1 - share^power``: above the cosine for a power of 2 ("higher for longer")."""
    return 1 - min(1.0, max(0.0, share)) ** power


def warmed_up(share: float, warm_up: float, rate: Callable[[float], float]) -> float:
    """A linear warm-up over the first part of the budget, then ``rate`` over the share of the rest.

    Args:
        share: Of the budget.
        warm_up: Share of the budget that the warm-up takes, below 1.
        rate: From a share to a factor.
    """
    return share / warm_up if share < warm_up else rate((share - warm_up) / (1 - warm_up))


def momentum_at(share: float, start: float) -> float:
    """Momentum of a momentum encoder, from ``start`` to 1 by half a cosine (BYOL, MoCo v3)."""
    return 1 - (1 - start) * cosine_rate(share)
