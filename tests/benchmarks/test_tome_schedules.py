from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import tome_schedules
from tome_schedules import SHAPES, shaped

from patchranking.pruning.macs import analytic_macs, keep_at_macs
from patchranking.pruning.schedule import Schedule


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_merge_in_proportion_at_the_macs_of_the_reference(demo, name):
    tower, shape = demo.tower, Schedule.default(demo.tower.depth, 0.5)
    reference = shape.at(keep_at_macs(tower, shape, 0.6))
    found = shaped(tower, reference, SHAPES[name])
    macs = [analytic_macs(tower, 0, one, inside=inside) for one, inside in ((found, True), (reference, False))]
    assert macs[0] == pytest.approx(macs[1], rel=0.02)
    left = [tower.num_patches, *found.kept(tower.num_patches).values()]
    merged = [before - after for before, after in pairwise(left)]
    if name.startswith("falling"):
        assert merged[0] == max(merged) > merged[-1]
    if name.startswith("rising"):
        assert merged[0] == min(merged)


def test_the_even_schedule_is_measured_beside_every_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tome_schedules.tome_schedules("demo", "demo:val", [0.6], 4, Path("out.json"))
    rows = json.loads(Path("out.json").read_text())["rows"]
    assert [row["shape"] for row in rows] == ["even", *SHAPES]
    assert all(0.5 < row["feature_cosine"] < 1 and row["n_images"] == 4 for row in rows)
    assert all(row["macs_share"] == pytest.approx(0.6, abs=0.02) for row in rows)
