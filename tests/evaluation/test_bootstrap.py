from __future__ import annotations

import numpy as np
import pytest

from patchranking.evaluation.bootstrap import interval


def test_it_is_that_of_the_normal_law_for_many_images():
    values = 100.0 * (np.random.default_rng(0).random(1000) < 0.9)
    low, high = interval(values)
    half = 1.96 * values.std() / 1000**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.3)
    assert high == pytest.approx(values.mean() + half, abs=0.3)
    assert interval(values) == [low, high] != interval(values, seed=1)


def test_no_variance_no_width_and_no_values_no_interval():
    assert interval([3.0] * 5) == pytest.approx([3, 3])
    assert interval([]) is None
