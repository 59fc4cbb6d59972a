from __future__ import annotations

import json
from pathlib import Path

import ladder
import ladders
import pytest
import random_model
import rungs
import torch
from rungs import LOW_RES, RUNGS, STOCK, Cell, Rungs

from patchranking import ExportSettings, Pruner, UserError, export
from patchranking.data import load_data
from patchranking.pruning.schedule import Schedule
from patchranking.towers.load import load_model


@pytest.fixture
def photos(tmp_path):
    """A folder of JPEG files in folders of classes."""
    data = load_data("demo:val", 8)
    for number, label in enumerate(data.labels):
        path = tmp_path / "photos" / data.class_names[label] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.image(number).resize((300, 300)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def pruner(demo, tmp_path):
    Pruner.unfitted(demo.tower, "demo", Schedule({1: 0.5})).save_pretrained(tmp_path / "fit")
    return tmp_path / "fit"


def test_every_cell_is_measured_beside_the_stock_rung(photos, pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "peak_mib", lambda *given: 100.0)
    monkeypatch.chdir(tmp_path)
    names, out = [STOCK, "pytorch bf16", LOW_RES], Path("ladder.json")
    given = {"twin": "demo", "half": "all", "batches": [1, 2], "rounds": 2}
    ladder.ladder("demo", str(photos), pruner, "demo:train", out, names, [1.0, 0.6], **given)
    results = json.loads(out.read_text())
    rows = {(row["rung"], row["macs"]): row for row in results["rows"] if not row["twin"]}
    twins = {row["rung"]: row for row in results["rows"] if row["twin"]}
    assert list(rows) == [(STOCK, 1), (STOCK, 0.6), ("pytorch bf16", 1), ("pytorch bf16", 0.6), (LOW_RES, 0.6)]
    stock = rows[STOCK, 1.0]
    assert (stock["ratio_to_stock"], stock["macs_share"]) == (1, 1)
    assert stock["ratio_to_dense"] == {"1": 1, "2": 1}
    assert list(twins) == [STOCK, "pytorch bf16"]
    assert twins[STOCK]["top1"] == stock["top1"]
    assert twins[STOCK]["macs_share"] == 1
    assert twins[STOCK]["feature_cosine"] is None
    assert stock["feature_cosine"] == pytest.approx(1)
    assert stock["index_overlap_at_10"] == 1
    assert rows[STOCK, 0.6]["macs_share"] == pytest.approx(0.6, abs=0.05)
    assert rows[STOCK, 0.6]["feature_cosine"] < rows["pytorch bf16", 1.0]["feature_cosine"] < 1
    assert {row["memory_mb"] for row in results["rows"]} == {100}
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for row in results["rows"])
    assert (results["split"], results["n_images"]) == ("all", 8)
    table = ladders.table(results)
    assert f"| {STOCK} | **1.00x** (1.00x); +0.0 / 1.0000 |" in table
    assert "| low-res fp32 | – | **" in table
    assert f"| twin, {STOCK} | **" in table
    assert "at batches of 1, 2:" in table
    assert all(name in ladders.figure(results) for name in names)


def test_exported_cells_run_their_files_and_are_exported_once(demo, pruner, tmp_path, monkeypatch):
    made, asked = Rungs(demo, Pruner.from_pretrained(pruner), None, 8, tmp_path / "work"), []

    def as_torch(model, folder, pruner, settings, images):
        asked.append((folder.name, settings.format, settings.precision, pruner and round(pruner.keep, 2)))
        return export(model, folder, pruner, ExportSettings("torch"))

    monkeypatch.setattr(rungs, "export", as_torch)
    pixels = torch.randn(2, 3, *demo.tower.image_size)
    dense, pruned = Cell("openvino fp32", 1.0), Cell("openvino fp32", 0.6)
    with torch.inference_mode():
        torch.testing.assert_close(made.run(dense)(pixels), demo.tower(pixels), atol=1e-4, rtol=1e-4)
        plain = made.run(Cell(STOCK, 0.6))(pixels)
        torch.testing.assert_close(made.run(pruned)(pixels), plain, atol=1e-4, rtol=1e-4)
        made.run(pruned)
    names = [one[:3] for one in asked]
    assert names == [
        ("openvino-fp32-1", "openvino", "fp32"),
        ("openvino-fp32-0.6", "openvino", "fp32"),
    ]
    assert made.check(pruned)["image_cosine"] > 0.9999
    assert made.check(Cell(STOCK, 1.0)) == {}


def test_unknown_rungs_are_refused(tmp_path):
    with pytest.raises(UserError, match=f"Unknown rung 'tpu': choose from {next(iter(RUNGS))}"):
        ladder.ladder("demo", "demo:val", tmp_path, "demo:train", rungs=["tpu"], out=tmp_path / "out.json")


def test_pictures_without_classes_have_times_and_cosines_alone(photos, pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(ladder, "peak_mib", lambda *given: 100.0)
    monkeypatch.chdir(tmp_path)
    (flat,) = sorted(photos.iterdir())[:1]
    ladder.ladder("demo", str(flat), pruner, None, Path("flat.json"), [STOCK], [0.6], half="all", batches=[1], rounds=1)
    (dense, pruned) = json.loads(Path("flat.json").read_text())["rows"]
    assert dense["top1"] is pruned["top1"] is None
    assert pruned["feature_cosine"] < dense["feature_cosine"]


def test_random_weights_load_with_a_pruner_of_theirs(tmp_path):
    random_model.random_model("ViT-S-32-alt", tmp_path / "random")
    loaded = load_model(f"open_clip:local-dir:{tmp_path / 'random'}")
    with Pruner.from_pretrained(tmp_path / "random/pruner").attached(loaded.model), torch.inference_mode():
        assert loaded.model.encode_image(torch.zeros(1, 3, *loaded.tower.image_size)).isfinite().all()
