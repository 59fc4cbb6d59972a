from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchranking.errors import UserError
from patchranking.ranking.store import (
    MANIFEST,
    finished_manifest,
    golden_by_index,
    iter_rankings,
    read_manifest,
    read_shard_summary,
    shard_name,
    write_manifest,
    write_shard,
)

SETTINGS = {"search": "sketched", "score": "label", "block": 3, "fingerprint": [0.1, -0.2]}


def write(folder, keys, importance, skipped, shards=1, finished=True):
    order = np.argsort(importance, axis=1)
    for index in range(shards):
        part = slice(index, None, shards)
        name = shard_name(index, shards)
        reasons = skipped if index == 0 else {}
        write_shard(folder / name, keys[part], importance[part], order[part], reasons, SETTINGS)
    totals = {"totals": {"in": len(keys) + len(skipped), "ranked": len(keys), "skipped": len(skipped)}}
    write_manifest(folder, {"settings": SETTINGS, "shards": shards} | (totals if finished else {}))


@given(
    st.lists(st.text(), unique=True, max_size=7),
    st.dictionaries(st.text(), st.text(), max_size=3),
    st.integers(1, 3),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_round_trip(keys, skipped, shards, data):
    importance = data.draw(arrays(np.float32, (len(keys), 4), elements=st.floats(-10, 10, width=32)))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), keys, importance, skipped, shards)
        rankings = list(iter_rankings(Path(folder)))
        assert sorted(key for key, _ in rankings) == sorted(keys)
        expected = dict(zip(keys, importance, strict=True))
        for key, row in rankings:
            assert row.dtype == np.float32
            assert np.array_equal(row, expected[key])
        summaries = [read_shard_summary(Path(folder) / shard_name(index, shards)) for index in range(shards)]
        assert sum(count for count, _ in summaries) == len(keys)
        assert [reasons for _, reasons in summaries] == [skipped] + [{}] * (shards - 1)
        assert finished_manifest(Path(folder))["settings"] == SETTINGS
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            MANIFEST,
            *(shard_name(index, shards) for index in range(shards)),
        ]


@pytest.fixture
def folder(tmp_path):
    importance = np.array([[0.5, 0.25, 1], [3, 2, 1]], np.float32)
    write(tmp_path, ["a/1.png", "ü.jpg"], importance, {"bad.png": "empty file"})
    return tmp_path


def test_a_shard_is_plain_parquet(folder):
    path = folder / shard_name(0, 1)
    assert pq.read_table(path).to_pydict() == {
        "key": ["a/1.png", "ü.jpg"],
        "importance": [[0.5, 0.25, 1.0], [3.0, 2.0, 1.0]],
        "removal_order": [[1, 0, 2], [2, 1, 0]],
        "search": ["sketched", "sketched"],
        "score": ["label", "label"],
    }
    assert json.loads(pq.read_metadata(path).metadata[b"patchranking"])["settings"] == SETTINGS
    assert read_shard_summary(path) == (2, {"bad.png": "empty file"})


def test_readers_of_parquet_read_the_folder(folder):
    table = pyarrow.dataset.dataset(folder).to_table()
    assert table["key"].to_pylist() == ["a/1.png", "ü.jpg"]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_parquet(folder)
    assert list(frame["score"]) == ["label", "label"]
    np.testing.assert_array_equal(np.stack(frame["importance"]), [[0.5, 0.25, 1.0], [3.0, 2.0, 1.0]])


def test_one_shard_is_in_memory_at_a_time(tmp_path, monkeypatch):
    write(tmp_path, ["a", "b", "c", "d"], np.eye(4, dtype=np.float32), {}, shards=2)
    opened = []
    read_table = pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, **options: opened.append(path) or read_table(path, **options))
    rankings = iter_rankings(tmp_path)
    assert [next(rankings)[0] for _ in range(2)] == ["a", "c"]
    assert len(opened) == 1
    assert [key for key, _ in rankings] == ["b", "d"]


def test_a_shard_may_hold_skipped_images_only(tmp_path):
    empty = np.empty((0, 4), np.float32)
    write_shard(tmp_path / "shard", [], empty, empty.astype(int), {"a": "b"}, SETTINGS)
    assert read_shard_summary(tmp_path / "shard") == (0, {"a": "b"})


def test_shards_sort_by_name():
    names = [shard_name(index, 12000) for index in (0, 9, 10, 11999)]
    assert names == sorted(names)


def sentence(folder):
    with pytest.raises(UserError) as caught:
        list(iter_rankings(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_rankings(tmp_path):
    assert read_manifest(tmp_path) is None
    for folder in (tmp_path, tmp_path / "missing"):
        assert "no rankings" in sentence(folder)


def test_an_unfinished_folder(tmp_path):
    write(tmp_path, ["a"], np.ones((1, 4), np.float32), {}, finished=False)
    assert "not finished" in sentence(tmp_path)


@pytest.mark.parametrize("content", ["", "{no json", "[1]", '"text"'])
def test_a_damaged_manifest(folder, content):
    (folder / MANIFEST).write_text(content)
    assert f"{MANIFEST}' is missing or damaged" in sentence(folder)


@pytest.mark.parametrize("keep", [None, 0, 10, -20])
def test_a_missing_or_damaged_shard(folder, keep):
    shard = folder / shard_name(0, 1)
    if keep is None:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:keep])
    assert f"'{shard}' is missing or damaged" in sentence(folder)


def test_a_write_that_fails_leaves_the_old_manifest(folder):
    before = read_manifest(folder)
    with pytest.raises(TypeError):
        write_manifest(folder, {"settings": object()})
    assert read_manifest(folder) == before
    assert json.loads((folder / MANIFEST).read_text()) == before


def test_golden_importance_by_the_index_of_an_image(folder):
    stored = dict(iter_rankings(folder))
    first, *_ = stored
    golden = golden_by_index(folder, ["unknown", first])
    assert list(golden) == [1]
    assert golden[1].tolist() == stored[first].tolist()


@pytest.mark.parametrize("content", [{"settings": {}}, {"settings": SETTINGS}, {"settings": SETTINGS, "shards": None}])
def test_a_manifest_that_lacks_what_readers_need_is_damaged(tmp_path, content):
    write_manifest(tmp_path, content | {"totals": {}})
    assert "is missing or damaged" in sentence(tmp_path)


def test_a_flipped_bit_in_the_rankings_is_found(tmp_path):
    importance = np.random.default_rng(0).random((40, 16), np.float32)
    write(tmp_path, [str(index) for index in range(40)], importance, {})
    (path,) = tmp_path.glob("*.parquet")
    content = bytearray(path.read_bytes())
    place = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset + 300
    content[place] ^= 1
    path.write_bytes(content)
    assert "is missing or damaged" in sentence(tmp_path)
