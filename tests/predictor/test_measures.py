from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from patchranking.predictor.measures import kendall, matching_rate, spearman

tied_pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=9).filter(
    lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
)


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(1, 8))
def test_matching_rate_is_the_overlap_of_the_tops(first, second, count):
    a, b = torch.tensor([first, range(8)]), torch.tensor([second, range(8)])
    tops = [{i for i in range(8) if row[i] >= 8 - count} for row in (first, second)]
    assert matching_rate(a, b, count) == pytest.approx((len(tops[0] & tops[1]) / count + 1) / 2)


@given(tied_pairs)
def test_correlations_agree_with_scipy_ties_included(pairs):
    first, second = zip(*pairs, strict=True)
    a, b = torch.tensor([first]), torch.tensor([second])
    assert kendall(a, b) == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-9)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)


def test_correlations_are_means_over_images():
    rising = torch.arange(5.0)
    golden = torch.stack([rising, rising])
    scores = torch.stack([rising, -rising])
    assert kendall(scores, golden) == spearman(scores, golden) == 0
    assert kendall(golden, golden) == pytest.approx(1)
    assert kendall(torch.zeros(2, 5), golden) == spearman(torch.zeros(2, 5), golden) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16])
def test_correlations_hold_for_every_number_type(dtype):
    falling = torch.arange(5, 0, -1).to(dtype)[None]
    assert kendall(falling, falling.flip(1)) == pytest.approx(-1)
    assert spearman(falling, falling.flip(1)) == pytest.approx(-1)
