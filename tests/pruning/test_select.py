from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchranking.errors import UserError
from patchranking.pruning.select import best_first, check_keep_rate, gather_tokens, kept_count, top_patches


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12), st.data())
def test_top_patches_equals_a_stable_sort(values, data):
    count = data.draw(st.integers(1, len(values)))
    expected = sorted(sorted(range(len(values)), key=lambda i: -values[i])[:count])
    assert top_patches(torch.tensor([values]), count).tolist() == [expected]


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=40), st.data())
def test_best_first_goes_down_and_prefers_the_lower_index(values, data):
    count = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda patch: (-values[patch], patch))[:count]
    assert best_first(torch.tensor([values]), count).tolist() == [expected]


def test_equal_scores_prefer_the_lower_index_in_every_image():
    scores = torch.zeros(2, 196)
    scores[1, 150] = 1
    assert top_patches(scores, 3).tolist() == [[0, 1, 2], [0, 1, 150]]
    assert best_first(scores, 3).tolist() == [[0, 1, 2], [150, 0, 1]]


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 9), st.data())
def test_gather_equals_indexing_row_by_row(batch, prefix, patches, data):
    tokens = torch.arange(batch * (prefix + patches) * 2.0).view(batch, prefix + patches, 2)
    kept = data.draw(st.integers(1, patches))
    chosen = [sorted(data.draw(st.permutations(range(patches)))[:kept]) for _ in range(batch)]
    found = gather_tokens(tokens, torch.tensor(chosen), prefix)
    for row, indices in enumerate(chosen):
        assert torch.equal(found[row], tokens[row][[*range(prefix), *(prefix + i for i in indices)]])


@pytest.mark.parametrize(
    ("rate", "patches", "kept"),
    [(1, 144, 144), (0.6, 196, 118), (0.5, 144, 72), (0.001, 9, 1), (0.599, 10, 6), (0.5, 5, 2), (0.5, 7, 4)],
)
def test_kept_count_rounds_and_never_empties(rate, patches, kept):
    assert kept_count(rate, patches) == kept


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_a_keep_rate_outside_0_to_1_is_refused(rate):
    with pytest.raises(UserError, match="keep rate"):
        check_keep_rate(rate)


def test_a_keep_rate_is_a_float_above_0_and_at_most_1():
    assert [check_keep_rate(rate) for rate in (1e-9, 1)] == [1e-9, 1.0]
    assert isinstance(check_keep_rate(1), float)
