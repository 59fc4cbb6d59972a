from __future__ import annotations

import numpy as np
import pytest
from sooner import curves_of, own_seconds, sooner


def curve(values, seed=0):
    costs = np.linspace(0, 100, len(values)).tolist()
    return [{"seed": seed, "step": at, "knn": value} for at, value in zip(costs, values, strict=True)]


def compared(ours, theirs, paired=True):
    found = (
        curves_of([row for seed, own in enumerate(some) for row in curve(own, seed)], "knn", "step")
        for some in (ours, theirs)
    )
    return sooner(*found, paired)


def test_what_is_there_sooner_saves_so_much():
    base = [[0, 20, 30, 36, 40]]
    assert compared([[0, 30, 50, 50, 50]], base) == {"factor": 2.667, "interval": [2.667, 2.667]}
    assert compared(base, base)["factor"] == 1
    assert compared([[0, 39]], base) == {"factor": None, "interval": [0, 0]}
    assert compared([[50, 45]], base)["factor"] is None


def test_a_level_curve_is_not_sooner_than_itself():
    level = [[0, 20, 31, 30, 30]]
    assert compared(level, level) == {"factor": 1, "interval": [1, 1]}
    assert compared([[0, 30, 30, 30, 30]], level)["factor"] == pytest.approx(1 + 10 / 11, abs=1e-3)


def test_the_interval_is_over_seeds():
    base, ours = [[0, 20, 40]] * 5, [[0, 36 + 2 * seed, 60] for seed in range(5)]
    found = compared(ours, base)
    assert found["factor"] == pytest.approx(2)
    assert 1.8 < found["interval"][0] < 2 < found["interval"][1] < 2.2


def test_paired_seeds_share_their_luck():
    luck = range(0, 50, 10)
    base, ours = [[own, 40 + own] for own in luck], [[own, 40 + own, 80 + own] for own in luck]
    widths = [np.ptp(compared(ours, base, paired)["interval"]) for paired in (True, False)]
    assert widths[0] < 0.01 < 0.5 < widths[1]


def test_seconds_of_a_core_take_the_place_of_the_clocks():
    row = {"step": 3, "seconds": 9.0, "cpu_seconds": 4.0}
    assert own_seconds(row, "cpu") == {"step": 3, "seconds": 4.0, "clock_seconds": 9.0}
    assert own_seconds(row, "cuda") == row
