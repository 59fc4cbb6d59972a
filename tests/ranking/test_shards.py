from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.ranking import shards
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.objectives import label
from patchranking.ranking.search import SearchSettings
from patchranking.ranking.shards import ShardRanker
from patchranking.ranking.store import read_shard_summary
from patchranking.towers.identity import fingerprint
from patchranking.towers.zero_shot import class_features

FAST = SearchSettings("leave-out", block=3, window=2, stride=2)


@pytest.fixture
def pictures(tmp_path):
    """Nine pictures of noise, of which the third and the last cannot be read."""
    root, rng = tmp_path / "pictures", np.random.default_rng(0)
    root.mkdir()
    for index in range(9):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / f"{index}.png")
    for index in (2, 8):
        (root / f"{index}.png").write_bytes(b"no picture")
    return load_data(str(root))


@given(st.integers(1, 500), st.integers(1, 40))
@settings(deadline=None)
def test_shards_divide_the_images_evenly_and_in_order(images, count):
    count = min(images, count)
    ranker = object.__new__(ShardRanker)
    ranker.data, ranker.count = range(images), count
    parts = [ranker.images(shard) for shard in range(count)]
    assert [index for part in parts for index in part] == list(range(images))
    assert {len(part) for part in parts} <= {images // count, -(-images // count)}


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_shard_holds_the_rankings_of_its_images_whatever_the_batches(
    tiny, pictures, tmp_path, monkeypatch, batch_size
):
    monkeypatch.setitem(shards._IMAGES_PER_BATCH, "cpu", batch_size)
    ranker = ShardRanker(tiny, pictures, FAST, tmp_path, 2)
    assert [*ranker.images(1)] == [4, 5, 6, 7, 8]
    done = ranker.rank(1)
    first = next(done)
    assert not ranker.path(1).exists(), "whole or not at all"
    assert [first, *done] == ([2, 2, 1] if batch_size == 2 else [4, 1])
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["shard-00001-of-00002.parquet"]
    table = pq.read_table(ranker.path(1)).to_pydict()
    assert table["key"] == ["4.png", "5.png", "6.png", "7.png"]
    for row, index in enumerate(range(4, 8)):
        expected = leave_out(tiny.tower, tiny.preprocess(pictures.image(index))[None], 3, 2, 2)
        np.testing.assert_allclose(table["importance"][row], expected.importance[0], rtol=1e-3, atol=1e-7)
        assert table["removal_order"][row] == np.argsort(table["importance"][row], kind="stable").tolist()
    count, skipped = read_shard_summary(ranker.path(1))
    assert (count, list(skipped)) == (4, ["8.png"])


def test_the_record_tells_the_search_and_the_model(tiny, pictures, tmp_path):
    ranker = ShardRanker(tiny, pictures, FAST, tmp_path, 3)
    record = {"search": "leave-out", "score": "preservation", "needs_labels": False, "block": 3, "window": 2}
    assert ranker.record == record | {"stride": 2, "model": "tiny", "fingerprint": fingerprint(tiny.tower)}
    assert sum(ranker.rank(0)) == 3
    metadata = pq.read_metadata(ranker.path(0)).metadata[b"patchranking"]
    assert json.loads(metadata)["settings"] == ranker.record


def test_a_shard_without_a_readable_image_is_a_file_too(tiny, pictures, tmp_path):
    ranker = ShardRanker(tiny, pictures, FAST, tmp_path, 9)
    assert sum(ranker.rank(8)) == 1
    assert (read_shard_summary(ranker.path(8))[0], pq.read_table(ranker.path(8)).num_rows) == (0, 0)


def test_labels_go_with_the_images_of_the_shard(tiny, tmp_path):
    """The second shard of four scenes ranks them by their own classes."""
    data = load_data("demo:test", 4)
    ranker = ShardRanker(tiny, data, SearchSettings("leave-out", "label", stride=2), tmp_path, 2)
    sum(ranker.rank(1))
    found = torch.tensor(pq.read_table(ranker.path(1)).to_pydict()["importance"])
    assert data.labels[:2] != data.labels[2:]
    objective = label(class_features(tiny.text, data.class_names, data.templates), 10, torch.tensor(data.labels[2:]))
    pixels = torch.stack([tiny.preprocess(data.image(index)) for index in (2, 3)])
    expected = leave_out(tiny.tower, pixels, 3, 2, 2, objective).importance
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_settings_that_do_not_suit_the_model_are_refused_at_once(tiny, pictures, tmp_path):
    with pytest.raises(UserError, match="blocks 0 to 4"):
        ShardRanker(tiny, pictures, SearchSettings(block=5), tmp_path, 1)
