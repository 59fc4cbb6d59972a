from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from patchranking.sharing.measured import Measured

FIGURES = Measured(
    "birds",
    "train",
    90,
    10,
    3,
    4,
    {"torch": "2.9", "threads": 2},
    [{"keep_rate": 0.5, "macs_share": 0.6, "top1": None}],
)


def test_figures_survive_a_trip_through_json_and_unknown_ones_are_left_alone():
    values = json.loads(json.dumps(asdict(FIGURES)))
    assert Measured.from_dict(values | {"of a later version": 1}) == FIGURES


def test_a_row_is_found_by_its_keep_rate():
    assert FIGURES.at(0.5) is FIGURES.rows[0]
    assert FIGURES.at(0.4) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": None},
        {"rows": [{"macs_share": 0.6}]},
        {"rows": [{"keep_rate": None}]},
        {"rows": [{"keep_rate": 0.5, "top1": "all"}]},
        {"n_images": "10"},
        {"dataset": None},
        {"environment": 3},
    ],
)
def test_anything_else_is_refused(wrong):
    with pytest.raises(ValueError, match="no figures of a fit"):
        Measured.from_dict(asdict(FIGURES) | wrong)
    with pytest.raises(ValueError, match="no figures of a fit"):
        Measured.from_dict({})
