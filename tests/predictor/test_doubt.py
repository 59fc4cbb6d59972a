from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from patchranking.predictor import doubt
from patchranking.predictor.doubt import SCALARS, Doubt, dropped_share, ridge, signs, spearman
from patchranking.pruning.attach import Reduced
from patchranking.pruning.schedule import Schedule


def by_least_squares(scalars, features, targets, penalty):
    """The weights of a ridge regression, as ordinary least squares with a row more for every feature."""
    shrunk = np.sqrt(penalty) * np.eye(features.shape[1])
    rows = np.block([[scalars, features], [np.zeros((len(shrunk), scalars.shape[1])), shrunk]])
    return np.linalg.lstsq(rows, np.concatenate([targets, np.zeros(len(shrunk))]), rcond=None)[0]


@pytest.mark.parametrize("features", [4, 20])
@pytest.mark.parametrize("repeated", [False, True])
def test_ridge_leaves_every_row_out_as_least_squares_does(features, repeated, monkeypatch):
    rng = np.random.default_rng(features)
    scalars = np.column_stack([np.ones(14), rng.normal(size=14) * 30])
    if repeated:
        scalars = np.column_stack([scalars, scalars[:, 1] - 2])
    inputs, targets = rng.normal(size=(14, features)), rng.normal(size=14)
    targets += inputs[:, 0] + scalars[:, 1]
    multiples = torch.tensor([1e-2, 0.3, 10.0], dtype=torch.float64)
    monkeypatch.setattr(doubt, "_PENALTIES", multiples)
    found = ridge(*map(torch.from_numpy, (scalars, inputs, targets)))
    basis = np.linalg.qr(scalars[:, :2])[0]
    spread = np.linalg.svd(inputs - basis @ basis.T @ inputs, compute_uv=False)
    penalties, left_out = multiples.numpy() * (spread**2).mean(), []
    for penalty in penalties:
        misses = []
        for row in range(14):
            others = np.arange(14) != row
            weights = by_least_squares(scalars[others], inputs[others], targets[others], penalty)
            misses.append(targets[row] - np.concatenate([scalars[row], inputs[row]]) @ weights)
        left_out.append(misses)
    best = int(np.square(left_out).mean(1).argmin())
    assert found.penalty == pytest.approx(penalties[best])
    np.testing.assert_allclose(found.left_out.numpy(), left_out[best], rtol=1e-6, atol=1e-8)
    expected = by_least_squares(scalars, inputs, targets, penalties[best])
    both = np.column_stack([scalars, inputs])
    np.testing.assert_allclose(both @ found.weights.numpy(), both @ expected, rtol=1e-6, atol=1e-8)


def test_blocks_see_the_share_of_the_last_stage():
    assert dropped_share(Schedule({1: 0.5, 3: 0.25}), 5) == pytest.approx(1 - (1 + 0.5 + 0.5 + 0.25 + 0.25) / 5)
    assert dropped_share(Schedule({0: 0.3}), 4) == pytest.approx(0.7)
    assert dropped_share(Schedule({2: 1.0}), 4) == 0


@pytest.mark.parametrize("merges", [False, True])
def test_signs_are_what_the_run_shows(merges):
    features, tokens = torch.tensor([[3.0, 4.0], [0.0, 0.1]]), torch.zeros(2, 2 + 3, 8)
    sizes = torch.tensor([[1, 1, 1, 2, 1.5], [1, 1, 1, 1, 1]]) if merges else None
    found = signs(features, Reduced(tokens, None, sizes), 10, 2, 0.01)
    gone = [0.55, 0.7] if merges else [0.7, 0.7]
    expected = [[1, -2, 0.01, gone[0], np.log10(5), 0.6, 0.8], [1, -2, 0.01, gone[1], -1, 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))
    assert (found.dtype, found.shape[1]) == (torch.float32, len(SCALARS) + 2)


def test_an_error_that_follows_the_signs_is_learned_and_levelled():
    torch.manual_seed(0)
    shown = torch.cat([torch.ones(200, 1), torch.randn(200, len(SCALARS) + 7)], 1)
    errors = 10 ** (shown @ torch.linspace(-0.3, 0.2, shown.shape[1]) - 3)
    own = Doubt.learned(shown[:150], errors[:150])
    torch.testing.assert_close(own(shown), errors.clamp(max=2), rtol=0.05, atol=0)
    own.level(shown[150:], 3 * errors[150:])
    torch.testing.assert_close(own(shown), 3 * errors, rtol=0.05, atol=0)


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for first, second in (rng.normal(size=(2, 30)), rng.integers(0, 5, (2, 30)).astype(float)):
        expected = spearmanr(first, second).statistic
        assert spearman(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(expected)
    assert spearman(torch.ones(4), torch.arange(4.0)) == 0
