"""Intervals by resampling what was measured: images, and fits where there are several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

__all__ = ["interval", "mcnemar", "paired_interval"]

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
    return None if not len(values) else paired_interval([values], [np.zeros(len(values))], seed, level)


def paired_interval(ours: ArrayLike, theirs: ArrayLike, seed: int = 0, level: float = 0.95) -> list[float]:
    """The percentile bootstrap interval of a mean difference on the same images, over images and fits.

    Every resample draws images with replacement, the same for both, and fits of each method on their own.

    Args:
        ours: ``(fits, images)``; a method that is not fitted has one row.
        theirs: ``(fits, images)``, of the same images in the same order.
        seed: Seed of the resamples.
        level: Share of the resampled differences inside.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(seed)
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    images = ours.shape[1]
    found = []
    for _ in range(_RESAMPLES):
        count = rng.multinomial(images, np.full(images, 1 / images)) / images
        mean_ours, mean_theirs = (rows[_drawn(rng, len(rows))].mean(0) for rows in (ours, theirs))
        found.append(float(count @ (mean_ours - mean_theirs)))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _drawn(rng: np.random.Generator, fits: int) -> np.ndarray | slice:
    return slice(None) if fits == 1 else rng.integers(fits, size=fits)


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The exact two-sided p of McNemar's test (1947): are two methods right equally often, on the same images?"""
    found = [mine for mine, its in zip(ours, theirs, strict=True) if bool(mine) != bool(its)]
    return float(binomtest(sum(map(bool, found)), len(found)).pvalue) if found else 1.0
