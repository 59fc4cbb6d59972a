from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchranking.predictor.measures import matching_rate


@given(st.permutations(range(8)), st.permutations(range(8)), st.integers(1, 8))
def test_matching_rate_is_the_overlap_of_the_tops(first, second, count):
    a, b = torch.tensor([first, range(8)]), torch.tensor([second, range(8)])
    tops = [{i for i in range(8) if row[i] >= 8 - count} for row in (first, second)]
    assert matching_rate(a, b, count) == pytest.approx((len(tops[0] & tops[1]) / count + 1) / 2)
