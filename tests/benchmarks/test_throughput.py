from __future__ import annotations

import json

import throughput
import timm

from patchranking.evaluation.speed import SpeedSettings


def test_dense_and_pruned_are_timed(keys, monkeypatch, tmp_path):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 5, "num_heads": 2, "num_classes": 24}
    monkeypatch.setattr(throughput, "vit_b16", lambda _: timm.create_model("vit_base_patch16_clip_224", **sizes))
    out = tmp_path / "throughput.json"
    throughput.throughput(SpeedSettings([0.5], [2], repeats=2, seconds=0.0), out, ["open_clip", "timm"])
    rows = json.loads(out.read_text())["rows"]
    assert {frozenset(row) for row in rows} == keys("throughput-vit_b16")
    assert [(row["model"], row["keep_rate"]) for row in rows] == [
        (f"{library} ViT-B/16", rate) for library in ("open_clip", "timm") for rate in (1.0, 0.5)
    ]
    assert all(row["rounds"] == 2 and row["images_per_second"] > 1 for row in rows)
    assert rows[1]["gmacs"] < rows[0]["gmacs"]
