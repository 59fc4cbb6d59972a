from __future__ import annotations

import json

import embed
import pytest

from patchranking.demo import scene
from patchranking.embedding.pipeline import Clock

KEYS = ["engine", "backend", "precision", "workers", "images_per_second", "model_only", "share", "decode_share"]


def test_embed_and_the_plain_loop_are_timed_beside_the_model(demo, monkeypatch, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(5):
        scene("train", number).image.save(tmp_path / f"in/{number}.png")
    asked = []
    monkeypatch.setattr(embed, "peak_rss_mib", lambda command: asked.append(command) or 512.0)
    out = tmp_path / "embed.json"
    embed.embed("demo", str(tmp_path / "in"), out, workers=[0, 1], batch_size=2, limit=4, rounds=1)
    found = json.loads(out.read_text())
    rows = found["rows"]
    assert [list(row) for row in rows] == [[*KEYS, "rss_mb"]] * 3
    assert [(row["engine"], row["workers"], row["rss_mb"]) for row in rows] == [
        ("local", 0, 512.0),
        ("local", 1, 512.0),
        ("open_clip loop", 0, None),
    ]
    assert (found["images"], found["pruner"]) == (4, None)
    for row in rows:
        assert row["share"] == pytest.approx(row["images_per_second"] / row["model_only"])
        assert 0 < row["decode_share"] < 1
    assert [command[:3] + command[-4:] for command in asked] == [
        ["embed", "demo", str(tmp_path / "in"), "--workers", str(number), "--engine", "local"] for number in (0, 1)
    ]


def test_all_are_run_in_turn_and_the_first_round_does_not_count():
    ran = []

    def timed(name):
        def one():
            ran.append(name)
            clock = Clock()
            clock.seconds["all"] = len(ran)
            return clock

        return one

    found = embed.in_turn({("a", 0): timed("a"), ("b", 1): timed("b")}, 2)
    assert ran == ["a", "b"] * 3
    assert {name: [clock.seconds["all"] for clock in clocks] for name, clocks in found.items()} == {
        ("a", 0): [3, 5],
        ("b", 1): [4, 6],
    }


def test_the_loop_and_embed_encode_the_same_images(demo, tmp_path):
    from patchranking.data.streams import load_stream

    stream = load_stream("demo:test", 5)
    batches = embed.batches(demo, stream, 5, 2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    clock = embed.loop(demo, stream, 5, 2)
    assert 0 < clock.seconds["decode"] < clock.seconds["all"]
