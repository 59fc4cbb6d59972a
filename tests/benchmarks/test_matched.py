from __future__ import annotations

import pytest
from matched import at_share, dense_point, speeds_of
from pictures import Setting

from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs, noise
from patchranking.methods import METHODS, PatchRanking
from patchranking.methods.tally import DENSE
from patchranking.pruner import Pruner
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule

SHAPE = Schedule({3: 0.75, 5: 0.5})


@pytest.mark.parametrize("name", ["patchranking", *(name for name in METHODS if name != "golden")])
def test_counted_macs_are_within_a_hundredth_of_the_share(name, demo):
    tower = demo.tower
    dense = dense_point(tower, SHAPE)
    assert dense.macs == pytest.approx(count_macs(tower, noise(tower, 1)))
    method = PatchRanking(Pruner.unfitted(tower, "demo", SHAPE)) if name == "patchranking" else METHODS[name]
    for share in (0.85, 0.66):
        point = at_share(method, tower, SHAPE, share, dense, 0)
        assert point.share == pytest.approx(point.macs / dense.macs)
        assert point.macs == pytest.approx(count_macs(point.encoding, noise(tower, 1)), rel=1e-3)
        assert abs(point.share - share) < (0.06 if name == "low-res" else 0.005)
        assert point.cost["macs_share"] == point.share
        assert point.cost["keep_rate"] == point.encoding.schedule.keep < 1
        assert not point.cost["oracle"]


def test_what_scoring_costs_is_taken_off_what_it_keeps(demo):
    dense = dense_point(demo.tower, SHAPE)
    random, scoring = (
        at_share(method, demo.tower, SHAPE, 0.7, dense, 0).encoding.schedule.keep
        for method in (METHODS["random"], PatchRanking(Pruner.unfitted(demo.tower, "demo", SHAPE)))
    )
    assert scoring < random


def test_where_scoring_leaves_too_little_for_a_share_the_least_is_kept(loaded):
    shape, tower = Schedule({1: 0.75, 3: 0.5}), loaded.tower
    costly = PatchRanking(Pruner.unfitted(tower, "tiny", shape))
    two = analytic_macs(tower, 24, shape.at(2 / 16)) / analytic_macs(tower, 24, shape.at(1.0))
    point = at_share(costly, tower, shape, two, dense_point(tower, shape), 0)
    assert point.share > two + 0.01
    assert point.encoding.schedule == shape.at(1 / 16)
    with pytest.raises(UserError, match="ask for more than 10%"):
        at_share(costly, tower, shape, 0.1, dense_point(tower, shape), 0)


def test_every_deployable_method_is_timed_once_beside_the_dense_model(tower, monkeypatch):
    dense, shape = dense_point(tower, Schedule({1: 0.5})), Schedule({1: 0.5})
    points = {Setting(DENSE, None, 0, 1.0): dense}
    for share in (0.5, 0.8):
        for fit in (0, 1):
            points[Setting("random", None, fit, share)] = at_share(METHODS["random"], tower, shape, share, dense, fit)
        points[Setting("golden", None, 0, share)] = at_share(METHODS["golden"], tower, shape, share, dense, 0)
    rows = speeds_of(tower, points, 2)
    assert [(row["method"], row["macs"], row["batch"]) for row in rows] == [("random", 0.8, 2), ("random", 0.5, 2)]
    assert all(row["images_per_second"] > 0 and row["images_per_second_dense"] > 0 for row in rows)
    assert rows[0]["macs_share"] == points[Setting("random", None, 0, 0.8)].share
