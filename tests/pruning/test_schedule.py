from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchranking.errors import UserError
from patchranking.pruning.schedule import Schedule


def test_round_trip():
    schedule = Schedule({4: 0.7})
    assert schedule.to_dict() == {"4": 0.7}
    assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_a_block_the_tower_lacks_is_refused(tower):
    Schedule({4: 0.5}).check(tower)
    for block in (-1, 5):
        with pytest.raises(UserError, match="blocks 0 to 4"):
            Schedule({block: 0.5}).check(tower)


def test_keep_is_checked_when_made():
    with pytest.raises(UserError, match="keep rate"):
        Schedule({3: 0})


def test_progressive_round_trip_sorted_by_depth():
    schedule = Schedule({5: 0.8, 3: 0.9, 9: 0.6})
    assert schedule.to_dict() == {"3": 0.9, "5": 0.8, "9": 0.6}
    assert Schedule.from_dict(schedule.to_dict()) == schedule
    assert (schedule.block, schedule.keep) == (3, 0.6)
    assert schedule.kept(196) == {3: 176, 5: 157, 9: 118}


def test_spread_is_the_papers_twenty_tokens_a_stage():
    kept = Schedule.spread([3, 5, 7, 9], 116 / 196).kept(196)
    assert list(kept.values()) == [176, 156, 136, 116]
    assert Schedule.spread([3], 0.6) == Schedule({3: 0.6})
    assert Schedule.spread([6, 3], 0.5).to_dict() == {"3": 0.75, "6": 0.5}
    with pytest.raises(UserError, match="at least one stage"):
        Schedule.spread([], 0.5)


def test_by_default_there_are_five_stages_that_let_the_same_share_through():
    depths = {12: [1, 2, 4, 6, 8], 24: [2, 4, 8, 12, 16], 8: [1, 3, 4, 5], 5: [1, 2, 3], 1: [0]}
    assert {depth: list(Schedule.default(depth, 0.5).stages) for depth in depths} == depths
    halves = {"1": 0.5, "2": 0.25, "4": 0.125, "6": 0.0625, "8": 0.03125}
    assert Schedule.default(12, 2**-5).to_dict() == pytest.approx(halves)
    assert Schedule.default(12, 0.125, first=3).to_dict() == pytest.approx(
        {"3": 2**-0.75, "4": 2**-1.5, "6": 2**-2.25, "8": 0.125}
    )
    assert list(Schedule.default(12, 0.5, first=0).stages) == [0, 1, 2, 4, 6, 8]
    assert Schedule.default(12, 0.5, first=9).to_dict() == {"9": 0.5}


def test_even_stages_let_the_same_share_through():
    assert Schedule.even([6, 3, 3], 0.25).to_dict() == {"3": 0.5, "6": 0.25}
    with pytest.raises(UserError, match="keep rate"):
        Schedule.even([3], 1.5)


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_another_keep_rate_is_met_exactly_and_stages_keep_their_order(first, second):
    schedule = Schedule.default(12, first).at(second)
    assert schedule.keep == second
    assert list(schedule.stages) == [1, 2, 4, 6, 8]
    assert list(schedule.stages.values()) == pytest.approx([second ** (stage / 5) for stage in range(1, 6)])


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_less_is_left_at_every_stage_where_less_is_left_in_the_end(early, late, keep):
    schedule = Schedule({1: max(early, late), 4: min(early, late)})
    assert all(schedule.at(keep / 2).stages[block] <= schedule.at(keep).stages[block] for block in (1, 4))


def test_another_keep_rate_raises_all_shares_to_one_power():
    schedule = Schedule({1: 0.9, 3: 0.8, 4: 0.6})
    assert schedule.at(0.36).to_dict() == pytest.approx({"1": 0.81, "3": 0.64, "4": 0.36})
    assert schedule.at(0.6) is schedule
    assert set(schedule.at(1.0).stages.values()) == {1.0}
    assert schedule.at(1.0).at(0.125).to_dict() == pytest.approx({"1": 0.5, "3": 0.25, "4": 0.125})
    assert Schedule({1: 0.5, 3: 0.5}).at(0.3).to_dict() == pytest.approx({"1": 0.3, "3": 0.3})
    with pytest.raises(UserError, match="keep rate"):
        schedule.at(0)


def test_counts_are_of_all_patches_and_at_least_one():
    assert Schedule({1: 0.599, 2: 0.5, 4: 0.001}).kept(10) == {1: 6, 2: 5, 4: 1}


def test_patches_do_not_come_back():
    with pytest.raises(UserError, match="must not increase"):
        Schedule({3: 0.5, 5: 0.6})
    with pytest.raises(UserError, match="at least one stage"):
        Schedule({})
