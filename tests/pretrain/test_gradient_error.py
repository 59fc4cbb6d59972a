from __future__ import annotations

import math

import pytest
import torch

from patchranking.pretrain.gradient_error import gradient_error


def drawn(number, mean, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    return mean + spread * torch.randn(number, len(mean), generator=generator)


def test_it_is_the_formula_written_out():
    base, own = torch.randn(6, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64) + 1
    found = gradient_error(base, own, 0.5)
    mean, expected = own.mean(0), base.mean(0)
    variance, base_variance = own.var(0).sum(), base.var(0).sum()
    norm2 = expected.square().sum() - base_variance / 6
    bias2 = (mean - expected).square().sum() - variance / 5 - base_variance / 6
    assert found.norm2 == pytest.approx(norm2.item())
    assert found.bias2 == pytest.approx((bias2 / norm2).item())
    assert found.variance == pytest.approx((variance / norm2).item())
    assert found.error == pytest.approx(((max(bias2, 0) + 0.5 * variance) / norm2).item())


def test_against_the_base_itself_the_bias_is_about_nothing():
    """Noise of the size of a real one: its length is ten times that of the gradient."""
    mean = torch.zeros(200)
    mean[0] = 1.0
    found = [
        gradient_error(drawn(40, mean, 0.2, 2 * seed), drawn(50, mean, 0.7, 2 * seed + 1), 1.0) for seed in range(40)
    ]
    average = sum(one.bias2 for one in found) / len(found)
    spread = (sum((one.bias2 - average) ** 2 for one in found) / 39) ** 0.5
    assert abs(average) < 3 * spread / math.sqrt(40)
    assert sum(one.bias2_interval[0] <= 0 <= one.bias2_interval[1] for one in found) >= 34
    naive = sum(one.variance / 50 for one in found) / len(found)
    assert naive > 1  # what the bias would have come out as, had the sampling not been taken off


def test_a_known_bias_and_variance_are_found():
    mean, away = torch.zeros(100), torch.zeros(100)
    mean[0], away[0], away[1] = 2.0, 2.0, 1.0
    found = gradient_error(drawn(400, mean, 0.1, 1), drawn(400, away, 0.3, 2), 0.25)
    assert found.norm2 == pytest.approx(4, rel=0.05)
    assert found.bias2 == pytest.approx(1 / 4, abs=0.02)
    assert found.variance == pytest.approx(100 * 0.09 / 4, rel=0.05)
    assert found.error == pytest.approx(found.bias2 + 0.25 * found.variance)
    assert found.bias2_interval[0] < 1 / 4 < found.bias2_interval[1]
    assert found.error_interval[0] < found.error < found.error_interval[1]
