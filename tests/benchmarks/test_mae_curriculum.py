from __future__ import annotations

import json
import sys
from dataclasses import replace

import mae_curriculum
import pytest

for library in ("lightly", "skimage", "sklearn"):
    pytest.importorskip(library)


def test_every_arm_takes_as_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mae_curriculum.py"])
    changes = {"image_size": 16, "patch_size": 4, "model_args": {"embed_dim": 16, "depth": 1, "num_heads": 2}}
    monkeypatch.setattr(mae_curriculum, "SMALL", replace(mae_curriculum.SMALL, decoder_width=32, **changes))
    mae_curriculum.mae_curriculum(
        train="demo:train", test="demo:test", out=tmp_path / "m.json", limit=20, test_limit=10, seeds=1, epochs=2,
        batch_size=10, evaluations=2, masks=[0.5], clusters=3,
    )  # fmt: skip
    results = json.loads((tmp_path / "m.json").read_text())
    assert {row["arm"] for row in results["rows"]} == set(mae_curriculum.ARMS)
    assert {row["step"] for row in results["rows"]} == {0, 2, 4}
    assert {(row["arm"], row["n_images"]) for row in results["rows"]} >= {("uniform-20", 4), ("prototype", 20)}
    first = [row["knn"] for row in results["rows"] if row["step"] == 0 and row["n_images"] == 20]
    assert len(set(first)) == 1
    assert set(results["rows"][0]) >= {"arm", "data", "seed", "step", "seconds", "knn", "linear_probe"}
    assert {one["arm"] for one in results["headline"]} == set(mae_curriculum.ARMS) - {"uniform"}
    assert len(results["headline"]) == 4 * 2 * 2
    assert results["tuned"]["decoder_depth"] in (1, 2)
    assert results["prototypes"]["clusters"] == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "m.json"]
