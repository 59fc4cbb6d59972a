from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchranking.predictor.losses import listnet, matching_rate, standardise

lists = st.integers(3, 8).flatmap(
    lambda n: st.tuples(*(st.lists(st.floats(-3, 3), min_size=n, max_size=n, unique=True) for _ in range(2)))
)


@given(lists)
def test_listnet_equals_the_formula(pair):
    scores, golden = pair
    mean = sum(golden) / len(golden)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in golden) / len(golden))
    z = [(g - mean) / max(deviation, 1e-12) for g in golden]
    target = [math.exp(v) / sum(map(math.exp, z)) for v in z]
    log_p = [s - math.log(sum(map(math.exp, scores))) for s in scores]
    expected = -sum(t * p for t, p in zip(target, log_p, strict=True))
    found = listnet(torch.tensor([scores], dtype=torch.double), torch.tensor([golden], dtype=torch.double))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_listnet_gradient():
    scores = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: listnet(s, torch.arange(18.0).double().view(3, 6) ** 1.3), scores)


def test_a_constant_prediction_is_not_optimal_and_the_golden_one_is():
    golden = torch.randn(4, 20)
    best = listnet(standardise(golden), golden)
    assert best < listnet(torch.zeros(4, 20), golden) - 0.1
    assert best < listnet(10 * torch.ones(4, 20), golden) - 0.1
    assert best < listnet(-golden, golden)
    for noise in torch.randn(10, 4, 20):
        assert best <= listnet(standardise(golden) + 0.1 * noise, golden)


def test_standardise_of_a_constant_row_is_zero():
    assert torch.equal(standardise(torch.full((1, 5), 3.0)), torch.zeros(1, 5))


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(1, 8))
def test_matching_rate_is_the_overlap_of_the_tops(first, second, count):
    a, b = torch.tensor([first]), torch.tensor([second])
    tops = [{i for i in range(8) if row[i] >= 8 - count} for row in (first, second)]
    assert matching_rate(a, b, count) == pytest.approx(len(tops[0] & tops[1]) / count)
