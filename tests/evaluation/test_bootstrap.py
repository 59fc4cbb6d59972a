from __future__ import annotations

import math

import numpy as np
import pytest

from patchranking.evaluation import bootstrap
from patchranking.evaluation.bootstrap import interval, mcnemar, paired_interval, stratified_interval


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


def test_a_difference_is_paired_what_both_share_does_not_widen_it():
    rng = np.random.default_rng(0)
    shared, gain = rng.normal(0, 10, 400), rng.normal(1, 0.5, 400)
    low, high = paired_interval([shared + gain], [shared])
    half = 1.96 * gain.std() / 20
    assert (low, high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.01)


def test_fits_widen_it_as_their_spread_says():
    """Without any spread over images, three fits at 0, 1 and 2 have the bootstrap law of a mean of three."""
    fits = np.repeat([[0.0], [1.0], [2.0]], 50, 1)
    low, high = paired_interval(fits, np.zeros((1, 50)))
    assert (low, high) == pytest.approx((0, 2), abs=1e-9)  # 1 resample in 27 is all zeros, more than the 2.5 % cut off
    assert paired_interval(fits, fits)[0] < 0 < paired_interval(fits, fits)[1]


def test_an_interval_is_the_paired_one_to_nothing():
    values = np.random.default_rng(1).normal(size=30)
    assert interval(values) == paired_interval([values], np.zeros((1, 30)))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (8, 2), (3, 3), (15, 40)])
def test_mcnemar_is_the_binomial_test_of_the_pictures_that_differ(better, worse):
    ours = [True] * better + [False] * worse + [True] * 20 + [False] * 5
    theirs = [False] * better + [True] * worse + [True] * 20 + [False] * 5
    number, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(number, k) for k in range(fewer + 1)) / 2**number
    assert mcnemar(ours, theirs) == pytest.approx(min(1, 2 * tail))


def test_data_sets_count_the_same_whatever_their_size():
    rng = np.random.default_rng(0)
    large, small = rng.normal(1, 1, 900), rng.normal(3, 1, 100)
    low, high = stratified_interval([([large], np.zeros((1, 900))), ([small], np.zeros((1, 100)))])
    half = 1.96 * np.hypot(large.std() / 30, small.std() / 10) / 2
    centre = (large.mean() + small.mean()) / 2
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=0.02)


def test_fits_are_drawn_once_for_all_data_sets():
    """A fit that is good on both data sets and one that is bad on both: their mean spreads as on one."""
    fits, nothing = np.repeat([[0.0], [1.0], [2.0]], 20, 1), np.zeros((1, 20))
    assert stratified_interval([(fits, nothing)] * 4) == pytest.approx([0, 2], abs=1e-9)
    against = stratified_interval([(fits, nothing), (-fits, nothing)])
    assert against == pytest.approx([0, 0], abs=1e-9)


def test_an_end_that_is_zero_but_for_rounding_is_zero():
    ours = np.array([[0.1, 0.2, 0.3, 0.7]] * 3) / 3
    theirs = ours[:1].copy()
    for images in (1, 3, 50):
        low, high = paired_interval(np.tile(ours, images), np.tile(theirs, images))
        assert (low, high, np.signbit(low)) == (0, 0, False)
