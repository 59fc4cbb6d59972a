from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from patchranking.embedding.settings import EmbedSettings
from patchranking.embedding.texts import embed_texts
from patchranking.errors import UserError

SETTINGS = EmbedSettings(dtype="float32")


def test_lines_become_rows_in_their_order_and_new_ones_are_appended(tiny, tmp_path, contents):
    file, out = tmp_path / "texts.txt", tmp_path / "texts"
    file.write_text("a red car\n\n  a cat \na red car\n", encoding="utf-8-sig")
    manifest = embed_texts(tiny, file, out, SETTINGS, shard_size=2)
    assert manifest["totals"] == {"in": 3, "out": 3, "failed": 0}
    table = pq.read_table(out)
    assert table["key"].to_pylist() == ["row-00000000", "row-00000002", "row-00000003"]
    assert table["caption"].to_pylist() == ["a red car", "a cat", "a red car"]
    expected = tiny.text(["a red car", "a cat", "a red car"])
    np.testing.assert_allclose(np.stack(table["embedding"].to_pylist()), expected, atol=1e-6)
    before = contents(out)
    assert embed_texts(tiny, file, out, SETTINGS, shard_size=2) == manifest
    assert contents(out) == before
    with file.open("a") as more:
        more.write("a dog\n")
    assert embed_texts(tiny, file, out, SETTINGS, shard_size=2)["totals"]["in"] == 4
    assert pq.read_table(out)["caption"].to_pylist()[3] == "a dog"


def test_captions_of_images_have_the_keys_of_these_and_npy_its_layout(tiny, tmp_path):
    (tmp_path / "list.csv").write_text("image,caption\na.png,one\na.png,two\nb.png,three\n")
    embed_texts(tiny, tmp_path / "list.csv", tmp_path / "out", SETTINGS, "npy")
    vectors = np.load(tmp_path / "out/text_emb/text_emb_00000.npy")
    np.testing.assert_allclose(vectors, tiny.text(["one", "two", "three"]), atol=1e-6)
    metadata = pq.read_table(tmp_path / "out/metadata/metadata_00000.parquet").to_pydict()
    assert metadata == {"key": ["a.png", "a.png", "b.png"], "caption": ["one", "two", "three"]}


def test_mistakes(tiny, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    for file, words in (("none.txt", "no list of captions"), ("empty.txt", "no captions")):
        with pytest.raises(UserError, match=words):
            embed_texts(tiny, tmp_path / file, tmp_path / "out")
    with pytest.raises(UserError, match="no text encoder"):
        embed_texts(replace(tiny, text=None), tmp_path / "empty.txt", tmp_path / "out")
    (tmp_path / "one.txt").write_text("one\n")
    embed_texts(tiny, tmp_path / "one.txt", tmp_path / "two", SETTINGS)
    with pytest.raises(UserError, match="dtype: float32, not float16"):
        embed_texts(tiny, tmp_path / "one.txt", tmp_path / "two")
