"""Intervals by resampling what was measured: images, and fits where there are several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["interval", "mcnemar", "paired_interval", "stratified_interval"]

_RESAMPLES, _AT_ONCE = 2000, 100
_DECIMALS = 9
"""Ends are rounded to these, so that what is zero but for the order of a sum is zero."""


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
    return stratified_interval([(ours, theirs)], seed, level)


def stratified_interval(
    pairs: Sequence[tuple[ArrayLike, ArrayLike]], seed: int = 0, level: float = 0.95
) -> list[float]:
    """The paired interval of a difference that is averaged over data sets, each of which counts the same.

    Every resample draws images within each data set, and fits once for all of them.

    Args:
        pairs: Of each data set what ``paired_interval`` takes; the number of fits is the same in all.
        seed: Seed of the resamples.
        level: Share of the resampled differences inside.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(seed)
    sets = [(np.asarray(ours, np.float64), np.asarray(theirs, np.float64)) for ours, theirs in pairs]
    our_fits, their_fits = (_drawn(rng, len(rows), _RESAMPLES) for rows in sets[0])
    total = np.zeros(_RESAMPLES)
    for ours, theirs in sets:
        images = ours.shape[1]
        for first in range(0, _RESAMPLES, _AT_ONCE):
            chosen = slice(first, first + _AT_ONCE)
            drawn = _drawn(rng, images, len(total[chosen]))
            total[chosen] += (drawn @ ours.T * our_fits[chosen]).sum(1)
            total[chosen] -= (drawn @ theirs.T * their_fits[chosen]).sum(1)
    ends = np.quantile(total / len(sets), [(1 - level) / 2, (1 + level) / 2])
    low, high = np.round(ends, _DECIMALS) + 0.0
    return [float(low), float(high)]


def _drawn(rng: np.random.Generator, number: int, resamples: int) -> np.ndarray:
    """Weights of so many things in every resample, ``(resamples, number)``."""
    return rng.multinomial(number, np.full(number, 1 / number), resamples) / number


def mcnemar(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """The exact two-sided p of McNemar's test (1947): are two methods right equally often, on the same images?"""
    from scipy.stats import binomtest  # no dependency of what fits or evaluates

    found = [mine for mine, its in zip(ours, theirs, strict=True) if bool(mine) != bool(its)]
    return float(binomtest(sum(map(bool, found)), len(found)).pvalue) if found else 1.0
