from __future__ import annotations

import json

import throughput
import timm

from patchranking.evaluation.speed import SpeedSettings


def test_dense_and_pruned_are_timed(keys, monkeypatch, tmp_path):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2, "num_classes": 24}
    monkeypatch.setattr(throughput, "vit_b16", lambda _: timm.create_model("vit_base_patch16_clip_224", **sizes))
    out = tmp_path / "throughput.json"
    settings = SpeedSettings(batches=[2], repeats=2, seconds=0.0, macs=[0.6])
    throughput.throughput(settings, out, ["open_clip", "timm"])
    rows = json.loads(out.read_text())["rows"]
    assert {frozenset(row) for row in rows} == keys("throughput-vit_b16")
    assert [(row["model"], row["pruner"], row["macs"]) for row in rows] == [
        (f"{library} ViT-B/16", form, share)
        for library in ("open_clip", "timm")
        for form in ("default", "two stages, no merging")
        for share in (None, 0.6)
    ]
    assert all(row["rounds"] == 2 and row["images_per_second"] > 1 for row in rows)
    assert rows[0]["gmacs"] > rows[1]["gmacs"] > rows[3]["gmacs"], "more predictors, not one"
