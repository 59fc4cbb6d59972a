from __future__ import annotations

import json
from functools import partial

import golden_search as script
from golden_search import golden_search

from patchranking.ranking.search import SearchSettings


def test_every_search_is_measured_beside_leave_out(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "RATES", (0.8, 0.4))
    monkeypatch.setattr(script, "SearchSettings", partial(SearchSettings, block=6))
    out = tmp_path / "golden_search.json"
    golden_search("demo", ["demo:test"], out, ["sketched"], seeds=2, limit=1, sizes=[])
    results = json.loads(out.read_text())
    rows = results["rows"]
    assert {frozenset(row) for row in rows} == keys("golden_search-demo")
    assert len(rows) == 2 * 5
    windows = [(f"leave-out, r = {window}", 0) for window in (1, 2, 3)]
    assert [(row["search"], row["seed"]) for row in rows[:5]] == [("sketched", 0), ("sketched", 1), *windows]
    assert [row["settings"]["window"] for row in rows[2:5]] == [1, 2, 3]
    assert all(row["n_images"] == 1 and row["oracle"] and row["top1_dense"] == 100 for row in rows)
    baseline = [row for row in rows if row["search"] == "leave-out, r = 1"]
    assert all(row["gmacs_ratio"] == row["seconds_ratio"] == 1 for row in baseline)
    for rate in (0.8, 0.4):
        best = min(
            (row for row in rows if row["keep_rate"] == rate and row["search"][0] == "l"),
            key=lambda row: row["feature_error"],
        )
        assert best["feature_error_ratio"] == 1
        assert all(
            row["feature_error_ratio"] == row["feature_error"] / best["feature_error"]
            for row in rows
            if row["keep_rate"] == rate
        )
    errors = [row["feature_error"] for row in baseline]
    assert 0 < errors[0] < errors[-1] < 0.5
    assert all(row["gmacs_ratio"] < 0.5 for row in rows if row["search"] == "sketched")
    assert results["cost_by_patches"] == []
