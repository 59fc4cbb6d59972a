from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchranking.errors import UserError
from patchranking.pretrain.curriculum import (
    Curriculum,
    distinct_share,
    probabilities,
    ramp,
    temperature_of,
    uniform_share,
)

DISTANCES = arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize("images", [1, 2, 7, 1000, 1_280_000])
def test_all_alike_show_the_share_of_the_formula(images):
    share = 1 - (1 - 1 / images) ** images
    assert uniform_share(images) == pytest.approx(share, abs=1e-9)
    assert distinct_share(np.ones(images), 0.3) == pytest.approx(share, abs=1e-9)
    assert distinct_share(np.arange(images), math.inf) == pytest.approx(share, abs=1e-9)


@given(DISTANCES, st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_the_share_is_that_of_the_formula(distance, temperature):
    number = len(distance)
    weights = [math.exp(-(own - min(distance)) / temperature) for own in distance]
    own = [weight / math.fsum(weights) for weight in weights]
    assert probabilities(distance, temperature) == pytest.approx(own)
    brute = math.fsum(1 - (1 - p) ** number for p in own) / number
    assert distinct_share(distance, temperature) == pytest.approx(brute, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.integers(1, 5)), min_size=1, max_size=9), st.floats(0.02, 9))
@settings(max_examples=50, deadline=None)
def test_equal_distances_may_be_counted(levels, temperature):
    distance, counts = (np.array(column) for column in zip(*levels, strict=True))
    every = np.repeat(distance, counts)
    own = probabilities(distance, temperature, counts)
    assert np.repeat(own, counts) == pytest.approx(probabilities(every, temperature))
    assert distinct_share(distance, temperature, counts) == pytest.approx(distinct_share(every, temperature))


@given(DISTANCES, st.floats(1e-3, 30), st.floats(1.01, 10))
@settings(max_examples=50, deadline=None)
def test_the_share_rises_with_the_temperature(distance, temperature, factor):
    assert distinct_share(distance, temperature) <= distinct_share(distance, factor * temperature) + 1e-12


def test_tiny_probabilities_keep_their_precision():
    images = 1_000_000
    assert distinct_share(np.zeros(images), 1.0) == pytest.approx(
        -math.expm1(images * math.log1p(-1 / images)), rel=1e-12
    )


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.6, 0.63])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_bisection_finds_the_temperature_of_a_share(share, scale):
    distance = np.random.default_rng(0).beta(3, 2, 5000)
    found = temperature_of(share, 7 + scale * distance)
    assert distinct_share(7 + scale * distance, found) == pytest.approx(share, abs=1e-6)
    assert found / scale == pytest.approx(temperature_of(share, distance), rel=1e-3)


def test_shares_out_of_reach_give_the_nearest_temperature():
    distance = np.array([0.0, 0.0, 0.5, 1.0])
    assert temperature_of(uniform_share(4), distance) == math.inf
    assert temperature_of(0.9, distance) == math.inf
    assert temperature_of(0.3, np.full(4, 0.2)) == math.inf
    nearest_alone = 0.5 * (1 - (1 - 1 / 2) ** 4)
    assert distinct_share(distance, temperature_of(0.01, distance)) == pytest.approx(nearest_alone)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_ramp_rises_from_start_to_end_and_stays(shape):
    values = [ramp(progress, 0.1, 0.6, shape) for progress in np.linspace(0, 1, 21)]
    assert (values[0], values[-1], values[10]) == pytest.approx((0.1, 0.6, 0.35))
    assert (np.diff(values) > 0).all()
    assert ramp(3.0, 0.1, 0.6, shape) == 0.6
    if shape == "cosine":
        assert values[5] == pytest.approx(0.6 - 0.5 * (1 + math.cos(math.pi / 4)) / 2)


def test_every_order_has_its_temperatures():
    distance = np.random.default_rng(1).random(2000)
    cosine = Curriculum(start=0.2, until=0.5)
    shares = [distinct_share(distance, cosine.temperature_at(at, distance)) for at in (0, 0.25, 0.5, 1)]
    middle = (0.2 + uniform_share(2000)) / 2
    assert shares == pytest.approx([0.2, middle, uniform_share(2000), uniform_share(2000)], abs=1e-6)
    assert cosine.temperature_at(0.5, distance) == math.inf
    assert Curriculum("uniform").temperature_at(0, distance) == math.inf
    fixed = Curriculum("fixed", temperature=0.3)
    assert [fixed.temperature_at(at, 2 * distance) for at in (0, 1)] == pytest.approx([0.6 * np.ptp(distance)] * 2)
    assert Curriculum("fixed").temperature_at(0, np.ones(3)) == math.inf
    assert Curriculum(until=0).temperature_at(0, distance) == math.inf
    assert Curriculum(start=1).temperature_at(0, distance) == math.inf


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"order": "easy"}, "'order' is one of prototype, hard-first, fixed, uniform, not 'easy'"),
        ({"ramp": "step"}, "'ramp' is one of cosine, linear"),
        ({"start": 1.2}, "'start' is a share"),
        ({"until": -1.0}, "'until' is a number, 0 or more"),
        ({"temperature": 0.0}, "'temperature' is above 0"),
        ({"temperature": math.nan}, "'temperature' is a number"),
    ],
)
def test_a_wrong_curriculum_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        Curriculum(**wrong)
