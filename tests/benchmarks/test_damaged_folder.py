from __future__ import annotations

import json
import sys

import damaged_folder
import embed_memory
import pytest

EMBEDDED = {
    *("PNG with the suffix of a JPEG", "no suffix", "1 x 1", "20000 x 100", "CMYK", "16 bits", "1 bit"),
    *("grey with alpha", "palette with transparency", "animated GIF", "animated WebP", "EXIF turns", "EXIF, broken"),
    *("ICC profile", "ICC profile, broken", "very long text in a PNG", "JPEG with more behind it", "progressive JPEG"),
    *("Unicode in the name", "newline in the name", "bytes in the name that are no text", "very long name", "good"),
}
FAILED = {"empty", "zero bytes", "random bytes", "text", "1 x 20000", "20000 x 20000", "PNG, cut", "WebP, cut"}
LEFT_OUT = {"link to its own folder", "link to itself", "link to nothing", "pipe"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_a_folder_with_every_kind_of_damage_is_accounted_for(tmp_path, monkeypatch):
    monkeypatch.setattr(damaged_folder, "SETTINGS", damaged_folder.EmbedSettings(batch_size=8, workers=0))
    kinds = len(damaged_folder.KINDS)
    assert kinds >= 30
    out = tmp_path / "damaged_folder.json"
    damaged_folder.damaged_folder(out, files=kinds + 20, damaged=kinds)
    found = json.loads(out.read_text())
    assert found["good_vectors_same"]
    rows = {row.pop("kind"): row for row in found["rows"]}
    for kind, row in rows.items():
        assert row["embedded"] + row["failed"] + row["left_out"] == row["files"] == (20 if kind == "good" else 1)
        assert (row["reason"] is None) == (row["failed"] == 0)
    whole = {name: {kind for kind, row in rows.items() if row[name]} for name in ("embedded", "failed", "left_out")}
    assert whole["embedded"] >= EMBEDDED
    assert whole["failed"] >= FAILED
    assert whole["left_out"] == LEFT_OUT
    assert found["totals"]["in"] == kinds + 20 - len(LEFT_OUT)
    assert found["totals"]["left_out"] == len(LEFT_OUT)


def test_memory_is_flat(tmp_path):
    out = tmp_path / "embed_memory.json"
    embed_memory.embed_memory(out, [1000, 4000])
    few, many = json.loads(out.read_text())["rows"]
    assert (few["rows"], many["rows"]) == (1000, 4000)
    assert 50 < few["peak_rss_mb"] <= many["peak_rss_mb"] <= 1.1 * few["peak_rss_mb"]


def test_memory_that_grows_is_found(tmp_path):
    with pytest.raises(SystemExit, match="memory grows"):
        embed_memory.embed_memory(tmp_path / "embed_memory.json", [8, 16], most=0.9)
