from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("SiglipModel", ["tome", "low-res"]),
        ("Dinov2Model", ["cls-attention", "golden"]),
        ("DINOv3ViTModel", ["evit", "low-res"]),
    ],
)
def test_a_pruner_is_fitted_and_evaluated(make, save, run, noise_folder, tmp_path, name, methods):
    data = noise_folder("data", ("sun", "umbrella"), 5)
    model = save(make(name).model, tmp_path / "model")
    fit = ("--steps", 2, "--epochs", 1, "--ranked", 4, "--objective", "both", "--keep", 0.5, "--out", tmp_path / "fit")
    status, _, err = run("fit", model, data, *fit)
    assert status == 0, err
    rest = ("--keep", 0.5, "--golden_images", 1, "--timing_batch", 0, "--examples", 0, "--methods", *methods)
    rest = (*rest, "--out", tmp_path / "found")
    status, _, err = run("evaluate", model, data, "--pruner", tmp_path / "fit", *rest)
    assert status == 0, err
    rows = json.loads((tmp_path / "found" / "results.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"dense", "patchranking", *methods}
    (pruned,) = [row for row in rows if row["method"] == "patchranking"]
    assert pruned["kept_patches"] == 8
    assert 0.1 < pruned["feature_cosine"] < 1 - 1e-6
