"""How many times sooner one kind of training is where another ends, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["curves_of", "own_seconds", "sooner"]

_RESAMPLES = 2000


def own_seconds(row: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A row of a training whose ``seconds`` are its own, also where other processes were served in between.

    On a CPU they are seconds of a core, and those of the clock are ``clock_seconds``.
    """
    if device != "cpu":
        return dict(row)
    kept = {name: value for name, value in row.items() if name != "cpu_seconds"}
    return kept | {"seconds": row["cpu_seconds"], "clock_seconds": row["seconds"]}


def curves_of(rows: Sequence[Mapping[str, Any]], measure: str, against: str) -> np.ndarray:
    """Cost and measure along the training of each seed, in their order, ``(seeds, points, 2)``.

    Args:
        rows: Of one arm, with ``seed``.
        measure: Such as ``knn``.
        against: Such as ``step``.
    """
    seeds = sorted({row["seed"] for row in rows})
    return np.array([[(row[against], row[measure]) for row in rows if row["seed"] == seed] for seed in seeds], float)


def sooner(ours: np.ndarray, theirs: np.ndarray, paired: bool) -> dict[str, Any]:
    """Compares mean curves, on straight lines between their points.

    Args:
        ours: From ``curves_of``, of what may be sooner.
        theirs: Of what it is compared with.
        paired: Whether seeds belong together, so that both are drawn alike.

    Returns:
        The ``factor`` between the costs at which both curves are first where theirs ends, so that a curve that stays
        level in the end is not sooner than itself; None where ours never is. And its 95 % bootstrap ``interval`` over
        seeds, where that counts as 0.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLES):
        own = rng.integers(len(ours), size=len(ours))
        found.append(_factor(ours[own], theirs[own if paired else rng.integers(len(theirs), size=len(theirs))]))
    low, high = np.quantile(found, [0.025, 0.975])
    return {
        "factor": round(_factor(ours, theirs), 3) or None,
        "interval": [round(float(low), 3), round(float(high), 3)],
    }


def _factor(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Cost at which the others' mean curve is first where it ends, over that of ours; 0 where ours never is."""
    aim = theirs.mean(0)[-1, 1]
    reached, needed = _first(ours.mean(0), aim), _first(theirs.mean(0), aim)
    return needed / reached if reached and needed else 0.0


def _first(curve: np.ndarray, aim: float) -> float | None:
    """Cost at which a curve first rises to an accuracy."""
    for (before, low), (after, high) in pairwise(curve):
        if high >= aim > low:
            return float(before + (after - before) * (aim - low) / (high - low))
    return None
