from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import systems
import tables

for library in ("open_clip", "lightly", "skimage", "sklearn"):
    pytest.importorskip(library)


def curve(system, arm, values, seed=0, gmacs=100.0, measure="linear_probe"):
    steps = len(values) - 1
    return [
        {"system": system, "arm": arm, "seed": seed, "share": i / steps, measure: value}
        | {"gmacs": gmacs * i / steps, "seconds": 2 * gmacs * i / steps, "step": i}
        for i, value in enumerate(values)
    ]


def pruned(macs, top1, method="patchranking", seed=0):
    speed = {"seconds": macs / 20, "seconds_dense": 1 / 20, "feature_cosine": macs, "fit_seconds": 3}
    return {"system": "pruning", "seed": seed, "method": method, "macs": macs, "macs_share": macs, "top1": top1} | speed


def test_a_saving_is_read_off_the_curves():
    rows = curve("mae", "plain", [0, 10, 20]) + curve("mae", "accelerated", [0, 20, 30])
    assert systems.saving(rows, "mae", "linear_probe", "gmacs")["factor"] == 2
    rows = curve("mae", "plain", [0, 9]) + curve("mae", "accelerated", [0, 8])
    assert systems.saving(rows, "mae", "linear_probe", "gmacs")["factor"] is None


def test_pruning_goes_down_until_a_point_is_lost():
    rows = [pruned(1.0, 60, "dense"), pruned(0.8, 59.5), pruned(0.6, 58.9), pruned(0.4, 61)]
    rows += [pruned(0.8, 0, "random")]
    found = systems.pruning(rows)
    assert (found["macs"], found["top1"], found["top1_dense"], found["times_faster"]) == (0.8, 59.5, 60, 1.25)
    other = [pruned(1.0, 60, "dense", 1), pruned(0.8, 60, seed=1), pruned(0.6, 60, seed=1), pruned(0.4, 50, seed=1)]
    assert systems.pruning(rows + other)["macs"] == 0.6
    assert systems.pruning([pruned(1.0, 60, "dense"), pruned(0.8, 50)]) is None


def test_a_line_is_the_sum_of_its_trainings():
    rows = curve("mae", "in line", [0, 10]) + curve("moco", "in line", [0, 10], gmacs=50)
    rows += curve("clip", "in line", [0, 40], measure="zero_shot") + curve("mae", "plain", [0, 1])
    twice = rows + [row | {"seed": 1} for row in rows] + [pruned(0.8, 50)]
    assert systems.line(twice, "in line") == {"arm": "in line", "gmacs": 250, "seconds": 500, "zero_shot": 40}


def test_every_step_runs_and_makes_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["systems.py"])
    sizes = {"image_size": 24, "patch_size": 4, "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 1}}
    for name in ("MASKED", "VIEWED"):
        monkeypatch.setattr(systems, name, replace(getattr(systems, name), **sizes))
    systems.systems(
        out=tmp_path / "t.json", images=24, test_images=16, seeds=1, epochs={"mae": 2, "moco": 2, "clip": 2},
        batch_size=8, evaluations=2, clusters=3, fit_steps=1, macs=[0.9, 0.8], work=tmp_path / "work",
    )  # fmt: skip
    results = json.loads((tmp_path / "t.json").read_text())
    trained = [row for row in results["rows"] if row["system"] != "pruning"]
    assert {(row["system"], row["arm"]) for row in trained} == {
        (system, arm) for system in ("mae", "moco", "clip") for arm in ("plain", "accelerated", "in line")
    }
    ends = {(row["system"], row["arm"]): row for row in trained if row["share"] == 1}
    for system in ("mae", "moco", "clip"):
        plain, fast, line = (ends[system, arm]["gmacs"] for arm in ("plain", "accelerated", "in line"))
        assert plain > 0
        assert fast == pytest.approx(plain, rel=0.2)
        assert line == pytest.approx(plain / 2, rel=0.3)
    assert ends["moco", "accelerated"]["step"] > ends["moco", "plain"]["step"]
    starts = {(row["system"], row["arm"]): row for row in trained if row["share"] == 0}
    assert starts["moco", "plain"]["linear_probe"] == starts["moco", "accelerated"]["linear_probe"]
    assert starts["mae", "accelerated"]["seconds"] == results["settings"]["prototype_seconds"] > 0
    shares = [row["macs"] for row in results["rows"] if row.get("method") == "patchranking"]
    assert shares == [0.9, 0.8]
    assert len(results["headline"]) == 10
    assert [one["arm"] for one in results["lines"]] == ["plain", "in line"]
    text = tables.table("systems-demo", results)
    assert "prototypes first" in text
