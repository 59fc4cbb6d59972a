from __future__ import annotations

import pytest

from patchranking.fitting import estimate
from patchranking.fitting.estimate import estimate_minutes
from patchranking.fitting.settings import FitSettings
from patchranking.pruning.schedule import Schedule


@pytest.fixture
def measured(monkeypatch):
    """Every part runs, and takes a second."""
    runs = []
    monkeypatch.setattr(estimate, "_seconds", lambda run: runs.append(run()) or 1.0)
    return runs


def test_it_counts_every_part_of_a_fit_once(tiny, measured):
    settings = FitSettings("both", ranked=50, steps=30)
    minutes = estimate_minutes(tiny.tower, 200, settings, Schedule({1: 0.7, 3: 0.5}))
    reading, searching, distilling = 200 * 2 / 4, 50 / 4, 30 * 16 / 4
    assert minutes == pytest.approx((reading + searching + distilling) / 60)
    assert len(measured) == 3


def test_it_counts_no_part_that_the_fit_lacks(tiny, measured):
    distilled = estimate_minutes(tiny.tower, 8, FitSettings("distill", steps=1), Schedule({1: 0.5}))
    imitated = estimate_minutes(tiny.tower, 8, FitSettings("imitate", ranked=99), Schedule({1: 0.5}))
    assert distilled == pytest.approx((8 * 2 / 4 + 16 / 4) / 60)
    assert imitated == pytest.approx((8 * 2 / 4 + 8 / 4) / 60)


def test_it_leaves_no_gradient(tiny):
    estimate_minutes(tiny.tower, 8, FitSettings(steps=1), Schedule({1: 0.5}))
    assert all(weight.grad is None for weight in tiny.tower.module.parameters())


def test_a_fit_by_tokens_needs_no_pooled_feature(tiny, measured, monkeypatch):
    monkeypatch.delattr(type(tiny.tower), "pool")
    settings = FitSettings("distill", target="tokens", steps=1)
    assert estimate_minutes(tiny.tower, 8, settings, Schedule({1: 0.5})) == pytest.approx((8 * 2 / 4 + 16 / 4) / 60)
