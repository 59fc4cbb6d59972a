from __future__ import annotations

import json

import pytest
from schedules import schedules


def test_schedules_have_equal_macs(keys, tmp_path):
    out = tmp_path / "schedules.json"
    schedules(
        "demo",
        ["demo:test", "demo:val"],
        "demo:train",
        out,
        keep=[0.5],
        early=[0.5],
        ranked=5,
        steps=2,
        seeds=1,
        limit=4,
        train_limit=6,
        work=tmp_path / "work",
    )
    rows = json.loads(out.read_text())["rows"]
    assert {frozenset(row) for row in rows} == keys("schedules-demo")
    assert [(row["dataset"], row["schedule"]) for row in rows] == [
        (dataset, kind) for dataset in ("demo/test", "demo/val") for kind in ("at once", "one order", "scored again")
    ]
    assert [list(row["stages"]) for row in rows[:3]] == [["3"], ["3", "6"], ["3", "6"]]
    assert all(row["gmacs"] == pytest.approx(rows[0]["gmacs"], rel=0.02) for row in rows)
    assert all(0.5 < row["feature_cosine"] < 1 and row["n_images"] == 4 and row["top1_dense"] == 100 for row in rows)
