from __future__ import annotations

import json

import contrastive_budget
import pytest

from patchranking.errors import UserError


def rows(arm, *knn, seed=0, budget=100):
    steps = len(knn) - 1
    return [
        {"method": "moco", "arm": arm, "seed": seed, "budget": budget * i / steps, "seconds": i, "knn": value}
        for i, value in enumerate(knn)
    ]


def test_the_factor_is_read_off_the_curve():
    found = contrastive_budget.speed_up(
        [*rows("base", 0, 10, 20), *rows("dynamic", 0, 20, 30)], "moco", "dynamic", "base"
    )
    assert found["factor"] == 2
    assert found["interval"] == [2, 2]
    between = [*rows("base", 0, 10, 25), *rows("dynamic", 0, 20, 30)]
    assert contrastive_budget.speed_up(between, "moco", "dynamic", "base")["factor"] == pytest.approx(
        100 / 75, abs=1e-3
    )
    assert contrastive_budget.speed_up(rows("base", 0, 1), "moco", "dynamic", "base") is None


def test_an_accuracy_that_is_never_reached_has_no_factor():
    found = contrastive_budget.speed_up([*rows("base", 0, 20), *rows("dynamic", 0, 10)], "moco", "dynamic", "base")
    assert found["factor"] is None


def test_seeds_span_the_interval():
    both = [*rows("base", 0, 10, 20), *rows("dynamic", 0, 20, 30), *rows("dynamic", 0, 15, 20, seed=1)]
    found = contrastive_budget.speed_up(both, "moco", "dynamic", "base")
    assert found["interval"][0] == 1
    assert found["interval"][1] == 2
    assert 1 < found["factor"] < 2


def test_all_arms_run(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["contrastive_budget.py"])
    monkeypatch.setattr(contrastive_budget, "STAGES", ("0000.safetensors", "1000.safetensors"))
    arms = ["base", "dynamic", "constant-patch", "dynamic-steps"]
    contrastive_budget.contrastive_budget(
        data="demo:train",
        test="demo:test",
        out=tmp_path / "out.json",
        methods=["moco"],
        arms=arms,
        rates=[1e-3, 2e-3],
        schedule="analysis",
        base_batches=40,
        batches=3,
        drops=[0.0, 0.5],
        seeds=1,
        epochs=1,
        batch_size=8,
        evaluations=1,
        image_size=24,
        patch_size=6,
        width=16,
        depth=1,
        limit=16,
        test_limit=16,
        work=tmp_path / "work",
    )
    found = json.loads((tmp_path / "out.json").read_text())
    keys = {"method", "arm", "seed", "budget", "seconds", "step", "knn", "linear_probe"}
    assert all(keys <= set(row) for row in found["rows"])
    assert [row["arm"] for row in found["rows"]] == [arm for arm in arms for _ in range(2)]
    assert {(one["arm"], one["over"]) for one in found["headline"]} == {
        ("constant-patch", "base"),
        ("dynamic", "base"),
    }
    assert {one["share"] for one in found["analysis"]["errors"]} == {0, 1}
    assert found["analysis"]["stages"][0]["start"] == 0
    assert found["analysis"]["passes"]["analysis"] > found["analysis"]["passes"]["budget"] > 0


def test_an_unknown_arm_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="Unknown arm 'best'"):
        contrastive_budget.contrastive_budget(out=tmp_path / "out.json", arms=["best"])
