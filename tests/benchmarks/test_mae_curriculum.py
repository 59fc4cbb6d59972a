from __future__ import annotations

import json
import sys
from dataclasses import replace

import mae_curriculum
import numpy as np
import pytest

for library in ("lightly", "skimage", "sklearn"):
    pytest.importorskip(library)


def curve(arm, values, seed=0, steps=100):
    costs = np.linspace(0, steps, len(values)).tolist()
    return [{"arm": arm, "seed": seed, "step": at, "knn": value} for at, value in zip(costs, values, strict=True)]


def test_an_arm_that_is_there_sooner_saves_so_much():
    rows = curve("uniform", [0, 20, 30, 36, 40]) + curve("prototype", [0, 30, 50, 50, 50])
    found = mae_curriculum.saving(rows, "prototype", "knn")
    assert found == {"factor": pytest.approx(100 / 37.5), "interval": [pytest.approx(100 / 37.5)] * 2}
    assert mae_curriculum.saving(rows, "uniform", "knn")["factor"] == 1
    never = curve("uniform", [0, 40]) + curve("prototype", [0, 39])
    assert mae_curriculum.saving(never, "prototype", "knn")["factor"] == 0


def test_the_interval_is_over_seeds():
    rows = [row for seed in range(5) for row in curve("uniform", [0, 20, 40], seed)]
    rows += [row for seed in range(5) for row in curve("prototype", [0, 36 + 2 * seed, 60], seed)]
    found = mae_curriculum.saving(rows, "prototype", "knn")
    assert found["factor"] == pytest.approx(2)
    assert 1.8 < found["interval"][0] < 2 < found["interval"][1] < 2.2


def test_every_arm_takes_as_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mae_curriculum.py"])
    changes = {"image_size": 16, "patch_size": 4, "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
    monkeypatch.setattr(mae_curriculum, "SMALL", replace(mae_curriculum.SMALL, decoder_width=32, **changes))
    mae_curriculum.mae_curriculum(
        out=tmp_path / "m.json", limit=20, test_limit=10, seeds=1, epochs=2, batch_size=10, evaluations=2, masks=[0.5],
        clusters=3,
    )  # fmt: skip
    results = json.loads((tmp_path / "m.json").read_text())
    assert {row["arm"] for row in results["rows"]} == set(mae_curriculum.ARMS)
    assert {row["step"] for row in results["rows"]} == {0, 2, 4}
    assert {(row["arm"], row["n_images"]) for row in results["rows"]} >= {("uniform-20", 4), ("prototype", 20)}
    first = [row["knn"] for row in results["rows"] if row["step"] == 0 and row["n_images"] == 20]
    assert len(set(first)) == 1
    assert set(results["rows"][0]) >= {"arm", "data", "seed", "step", "seconds", "knn", "linear_probe"}
    assert results["steps_saved"].keys() == set(mae_curriculum.ARMS) - {"uniform"}
    assert results["tuned"]["decoder_depth"] in (1, 2)
    assert results["prototypes"]["clusters"] == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "m.json"]
