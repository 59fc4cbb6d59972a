from __future__ import annotations

import json

import predictors as script
from predictors import predictors


def test_one_thing_at_a_time_differs_from_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "RATES", (0.6, 0.4))
    monkeypatch.setattr(script, "BLOCK", 6)
    out = tmp_path / "predictors.json"
    options = {"seeds": 1, "steps": 2, "golden_images": 1, "limit": 2, "train_limit": 5, "work": tmp_path / "work"}
    predictors("demo", ["demo:test"], "demo:train", out, ["mlp"], ["both", "bce"], [5, 4], **options)
    rows = json.loads(out.read_text())["rows"]
    kinds = dict.fromkeys((row["network"], row["objective"], row["n_train"]) for row in rows)
    assert list(kinds) == [
        ("random", None, 0),
        ("cls-attention", None, 0),
        ("mlp", "both", 5),
        ("mlp", "bce", 5),
        ("mlp", "both", 4),
    ]
    assert len(rows) == 2 * len(kinds)
    assert {row["dataset"] for row in rows} == {"demo/test"}
    assert {row["fit_on"] for row in rows} == {None, "demo/train"}
    for row in rows:
        assert 0.5 < row["feature_cosine"] < 1
        assert row["n_images"] == 2
        assert 0 <= row["matching_rate"] <= 1
        assert -1 <= row["kendall"] <= 1
        assert (row["macs_share"] is None) == (row["objective"] is None)
        assert row["macs_share"] is None or 0 < row["macs_share"] < 0.05
    by_attention = [row["matching_rate"] for row in rows if row["network"] == "cls-attention"]
    assert all(rate > row["chance"] - 0.1 for rate, row in zip(by_attention, rows, strict=False))
