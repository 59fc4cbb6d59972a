from __future__ import annotations

import pytest

from patchranking.errors import UserError
from patchranking.pruning.schedule import Schedule


def test_round_trip():
    schedule = Schedule(4, 0.7)
    assert schedule.to_dict() == {"4": 0.7}
    assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_a_block_the_tower_lacks_is_refused(tower):
    Schedule(4, 0.5).check(tower)
    for block in (-1, 5):
        with pytest.raises(UserError, match="blocks 0 to 4"):
            Schedule(block, 0.5).check(tower)


def test_keep_is_checked_when_made():
    with pytest.raises(UserError, match="keep rate"):
        Schedule(3, 0)
