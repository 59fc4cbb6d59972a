from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchranking.predictor.losses import LOSSES, bce, listnet, margin, standardise, top_list

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


@given(lists)
def test_bce_equals_the_formula(pair):
    scores, golden = (torch.tensor([row], dtype=torch.double) for row in pair)
    target, predicted = standardise(golden).sigmoid(), scores.sigmoid()
    expected = -(target * predicted.log() + (1 - target) * (1 - predicted).log()).mean()
    assert bce(scores, golden).item() == pytest.approx(expected.item(), rel=1e-6)


@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 4)), min_size=2, max_size=7))
def test_margin_equals_the_loop_over_pairs_without_ties(patches):
    short = [max(0.0, 1 - (s - t)) for s, i in patches for t, j in patches if i > j]
    scores, golden = torch.tensor(patches, dtype=torch.double).T[:, None]
    assert margin(scores, golden).item() == pytest.approx(sum(short) / max(1, len(short)), abs=1e-9)


@given(st.permutations(range(10)), st.lists(st.floats(-3, 3), min_size=10, max_size=10))
def test_top_list_equals_the_mean_over_the_tops(golden, scores):
    log_p = [s - math.log(sum(map(math.exp, scores))) for s in scores]
    tops = [[log_p[i] for i in range(10) if golden[i] >= 10 - k] for k in (3, 4, 5, 6, 7, 8)]
    expected = -sum(sum(top) / len(top) for top in tops) / len(tops)
    found = top_list(torch.tensor([scores], dtype=torch.double), torch.tensor([golden], dtype=torch.double))
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    scores = torch.randn(3, 6, dtype=torch.double, requires_grad=True)
    golden = torch.arange(18.0).double().view(3, 6) ** 1.3
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, golden), scores)


@pytest.mark.parametrize("name", LOSSES)
def test_the_golden_order_beats_its_reverse_and_a_constant(name):
    golden = torch.randn(4, 20)
    right = LOSSES[name](standardise(golden), golden)
    assert right < LOSSES[name](torch.zeros(4, 20), golden)
    assert right < LOSSES[name](-standardise(golden), golden)


def test_a_constant_prediction_is_not_optimal_and_the_golden_one_is():
    golden = torch.randn(4, 20)
    best = listnet(standardise(golden), golden)
    assert best < listnet(torch.zeros(4, 20), golden) - 0.1
    assert best < listnet(10 * torch.ones(4, 20), golden) - 0.1
    assert best < listnet(-golden, golden)
    for noise in torch.randn(10, 4, 20):
        assert best <= listnet(standardise(golden) + 0.1 * noise, golden)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 0.7, 1 / 3, 123.456])
def test_standardise_of_a_constant_row_is_zero_whatever_its_mean_rounds_to(value):
    rows = torch.stack([torch.full((196,), value), torch.arange(196.0)])
    assert torch.equal(standardise(rows)[0], torch.zeros(196))
    assert standardise(rows)[1].std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_counts_as_the_mean_of_its_images(name):
    scores, golden = torch.randn(3, 20), torch.randn(3, 20)
    alone = [LOSSES[name](scores[i : i + 1], golden[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(LOSSES[name](scores, golden), torch.stack(alone).mean())


@pytest.mark.parametrize("name", ["listnet", "margin", "top-list"])
def test_a_shift_of_all_scores_changes_nothing_where_only_the_order_counts(name):
    scores, golden, shift = torch.randn(3, 20), torch.randn(3, 20), torch.tensor([[5.0], [-2.0], [0.5]])
    torch.testing.assert_close(LOSSES[name](scores + shift, golden), LOSSES[name](scores, golden))


@pytest.mark.parametrize("name", LOSSES)
def test_the_scale_of_the_golden_importance_is_of_no_account(name):
    scores, golden = torch.randn(3, 20), torch.randn(3, 20)
    torch.testing.assert_close(LOSSES[name](scores, 1e-3 * golden + 7), LOSSES[name](scores, golden), rtol=1e-3, atol=0)
