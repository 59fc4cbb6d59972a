"""Intervals of a mean by resampling the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["interval"]

_RESAMPLES = 2000


def interval(values: Sequence[float], seed: int = 0, level: float = 0.95) -> list[float] | None:
    """The percentile bootstrap interval of a mean (Efron, 1979).

    Given differences of two methods on the same images, it is the paired interval of the difference.

    Args:
        values: One an image.
        seed: Seed of the resamples.
        level: Share of the resampled means inside.

    Returns:
        Lower and upper end; None without values.
    """
    if not len(values):
        return None
    rng, array = np.random.default_rng(seed), np.asarray(values, np.float64)
    counts = (rng.multinomial(len(array), np.full(len(array), 1 / len(array))) for _ in range(_RESAMPLES))
    means = [float(count @ array) / len(array) for count in counts]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]
