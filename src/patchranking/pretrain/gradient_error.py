"""How wrong the gradient of a compressed batch is, for what it costs: squared bias, variance, cost-adjusted error.

After "Accelerating Augmentation Invariance Pretraining" (Lin et al., 2024), whose figure 4 names these three; the
formulas are derived from the names. With ``g`` the expected gradient without compression and ``h`` the gradient of one
batch under a compression of cost ``c``,

    bias2 = || E[h] - g ||^2        variance = E || h - E[h] ||^2        error = bias2 + (c / c_base) variance,

since the compute of one uncompressed batch buys ``c_base / c`` compressed ones, whose mean has so much less variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["GradientError", "gradient_error"]

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class GradientError:
    """The error of a compression's gradient; all but ``norm2`` in units of it.

    Attributes:
        bias2: Squared bias, without what the sampling of both means adds to it; it may come out below 0.
        bias2_interval: 95 % bootstrap interval over batches.
        variance: Variance of the gradient of one batch.
        variance_interval: Of it.
        error: Cost-adjusted mean squared error, with a bias of no less than 0.
        error_interval: Of it.
        norm2: Squared length of the expected gradient without compression.
    """

    bias2: float
    bias2_interval: tuple[float, float]
    variance: float
    variance_interval: tuple[float, float]
    error: float
    error_interval: tuple[float, float]
    norm2: float


def gradient_error(base: Tensor, own: Tensor, cost: float, seed: int = 0) -> GradientError:
    """Estimates the error from gradients of independent batches.

    The squared distance of two sample means exceeds that of the expectations by the variance of both means, which is
    estimated and taken off: ``|| mean(own) - mean(base) ||^2 - V_own / K - V_base / M``.

    Args:
        base: Gradients without compression, ``(M, weights)``, each of a batch or the mean of several.
        own: Gradients of single batches under the compression, ``(K, weights)``, of other batches.
        cost: Of a step under the compression as a share of one without.
        seed: Of the bootstrap, which draws batches of both with replacement.

    Returns:
        The error, its parts and their intervals.
    """
    number, others = len(own), len(base)
    both = torch.cat([own, base])
    gram = _gram(both)
    ours, theirs, cross = gram[:number, :number], gram[number:, number:], gram[:number, number:]

    def parts(w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Distance of the weighted means, variances of ``own`` and of ``base``; weights ``(resamples, batches)``."""
        own2, base2 = ((w @ ours) * w).sum(1), ((v @ theirs) * v).sum(1)
        distance = own2 + base2 - 2 * ((w @ cross) * v).sum(1)
        variance = (w @ ours.diagonal() - own2) * number / (number - 1)
        return distance, variance, (v @ theirs.diagonal() - base2) * others / (others - 1)

    even = np.full((1, number), 1 / number), np.full((1, others), 1 / others)
    distance, variance, base_variance = (float(part[0]) for part in parts(*even))
    norm2 = float(theirs.mean()) - base_variance / others
    bias2 = distance - variance / number - base_variance / others
    rng = np.random.default_rng(seed)
    drawn = parts(*(rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES) / n for n in (number, others)))
    drawn_bias2, drawn_variance = drawn[0] - drawn[0].mean() + bias2, drawn[1] - drawn[1].mean() + variance
    drawn_error = np.maximum(drawn_bias2, 0) + cost * drawn_variance
    return GradientError(
        bias2 / norm2,
        _interval(drawn_bias2 / norm2),
        variance / norm2,
        _interval(drawn_variance / norm2),
        (max(bias2, 0.0) + cost * variance) / norm2,
        _interval(drawn_error / norm2),
        norm2,
    )


def _gram(rows: Tensor) -> np.ndarray:
    """Inner products of rows in double precision, a slice of the columns at a time."""
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(1 << 18, dim=1):
        wide = part.double()
        found += wide @ wide.T
    return found.numpy()


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)
