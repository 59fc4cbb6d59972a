"""Schedules of compression: by hand, in two phases, or from the errors of gradients along a pilot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from patchranking.errors import UserError
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.objective import Objective
from patchranking.pretrain.schedule import CompressionSchedule, Stage, monotone

__all__ = ["best_compression", "default_schedule", "named_schedule", "schedule_from_errors", "two_phase_schedule"]


def _larger_sizes(objective: Objective) -> list[int]:
    """Patch sizes that fit and leave 3 x 3 patches or more, the model's own first."""
    size = objective.tower.image_size[0]
    return [p for p in range(objective.base.patch_size, size // 3 + 1) if size % p == 0]


def _nearest(objective: Objective, factor: float) -> int:
    """The patch size nearest to so many times the model's own."""
    own = objective.base.patch_size
    return min(_larger_sizes(objective), key=lambda size: abs(size - factor * own), default=own)


def two_phase_schedule(objective: Objective) -> CompressionSchedule:
    """Patches about twice as large for 75 % of the budget, then the model's own, as FastDINOv2 and CLIPA do.

    Raises:
        UserError: If no larger patch size fits.
    """
    own, larger = objective.base.patch_size, _nearest(objective, 2)
    if larger == own:
        raise UserError(f"No patch larger than {own} fits this model's images: choose a size with more divisors.")
    return CompressionSchedule.two_phase(own, larger)


def default_schedule(objective: Objective) -> CompressionSchedule:
    """A schedule without a search: larger patches first, then half of them dropped, then the whole image.

    For patches of 16 on 240 pixels it is 30 with half dropped, 24 with half dropped, 16 with half dropped and 16, a
    quarter of the budget each. Our guess at the paper's, which does not print one.
    """
    own = objective.base.patch_size
    wanted = [
        Compression(_nearest(objective, 2), 0.5),
        Compression(_nearest(objective, 1.5), 0.5),
        Compression(own, 0.5),
        Compression(own),
    ]
    return CompressionSchedule.of(monotone(wanted, objective.passes))


def named_schedule(name: str, objective: Objective) -> CompressionSchedule:
    """A schedule by its name, or from a file.

    Args:
        name: ``none``, ``default``, ``two-phase``, or a YAML file.
        objective: What is trained under it.

    Raises:
        UserError: If it does not fit, or the file is none of a schedule.
    """
    if name == "none":
        return CompressionSchedule.constant(objective.base)
    if name == "two-phase":
        return two_phase_schedule(objective)
    if name == "default":
        return default_schedule(objective)
    found = CompressionSchedule.load(Path(name))
    found.check(objective.tower, objective.passes)
    return found


def best_compression(rows: Sequence[Mapping[str, Any]]) -> Compression:
    """The compression of the least cost-adjusted error among those of one stage; the dearest of equals."""
    best = min(rows, key=lambda row: (row["error"], -row["cost"]))
    return Compression(best["patch_size"], best["drop"])


def schedule_from_errors(
    stages: Mapping[float, Sequence[Mapping[str, Any]]], base: Compression, cost: Callable[[Compression], float]
) -> CompressionSchedule:
    """The schedule that takes the best compression of each stage, around that stage.

    A compression holds from half-way after the stage before to half-way to the next one. It only ever relaxes, and the
    last stage has none, since the encoder is used without.

    Args:
        stages: Share of the budget -> errors of the candidates there, two stages or more.
        base: No compression.
        cost: Of a compression.
    """
    shares = sorted(stages)
    best = [*monotone([best_compression(stages[share]) for share in shares[:-1]], cost), base]
    starts = [0.0, *((before + after) / 2 for before, after in pairwise(shares))]
    changed = [place for place, one in enumerate(best) if not place or one != best[place - 1]]
    return CompressionSchedule(tuple(Stage(starts[place], best[place]) for place in changed))
