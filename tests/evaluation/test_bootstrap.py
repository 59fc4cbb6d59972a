from __future__ import annotations

import math

import numpy as np
import pytest

from patchranking.evaluation import bootstrap
from patchranking.evaluation.bootstrap import interval


def hits_at(share, hits, images):
    """The number of hits that a resample of the images stays below with this probability: the binomial law."""
    below, rate = 0.0, hits / images
    for number in range(images + 1):
        below += math.comb(images, number) * rate**number * (1 - rate) ** (images - number)
        if below >= share:
            return number
    return images


@pytest.mark.parametrize("level", [0.95, 0.9, 0.5])
@pytest.mark.parametrize("hits", [90, 60, 7])
def test_the_ends_are_those_of_the_binomial_law(level, hits, monkeypatch):
    monkeypatch.setattr(bootstrap, "_RESAMPLES", 20_000)
    low, high = interval([100.0] * hits + [0.0] * (100 - hits), level=level)
    assert low == pytest.approx(hits_at((1 - level) / 2, hits, 100), abs=1)
    assert high == pytest.approx(hits_at((1 + level) / 2, hits, 100), abs=1)


def test_it_is_that_of_the_normal_law_for_many_images():
    values = 100.0 * (np.random.default_rng(0).random(1000) < 0.9)
    low, high = interval(values)
    half = 1.96 * values.std() / 1000**0.5
    assert low == pytest.approx(values.mean() - half, abs=0.15)
    assert high == pytest.approx(values.mean() + half, abs=0.15)


def test_it_is_drawn_by_seed():
    values = np.random.default_rng(0).normal(size=50)
    assert interval(values) == interval(values, seed=0) != interval(values, seed=1)


def test_no_variance_no_width_and_no_values_no_interval():
    assert interval([3.0] * 5) == pytest.approx([3, 3])
    assert interval([]) is None
