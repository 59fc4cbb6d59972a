from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchranking.errors import UserError
from patchranking.ranking.store import (
    read_manifest,
    read_rankings,
    read_shard_summary,
    shard_name,
    write_manifest,
    write_shard,
)

SETTINGS = {"block": 3, "fingerprint": [0.1, -0.2]}


def write(folder, keys, importance, skipped, shards=1, finished=True):
    order = np.argsort(importance, axis=1)
    for index in range(shards):
        part = slice(index, None, shards)
        name = shard_name(index, shards)
        write_shard(folder / name, keys[part], importance[part], order[part], skipped if index == 0 else {})
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
        rankings = read_rankings(Path(folder))
        assert set(rankings.importance) == set(keys)
        for key, row in zip(keys, importance, strict=True):
            assert rankings.importance[key].dtype == np.float32
            assert np.array_equal(rankings.importance[key], row)
        assert rankings.skipped == skipped
        assert rankings.settings == SETTINGS
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "manifest.json",
            *(shard_name(index, shards) for index in range(shards)),
        ]


@pytest.fixture
def folder(tmp_path):
    importance = np.array([[0.5, 0.25, 1], [3, 2, 1]], np.float32)
    write(tmp_path, ["a/1.png", "ü.jpg"], importance, {"bad.png": "empty file"})
    return tmp_path


def test_a_shard_is_plain_parquet(folder):
    table = pq.read_table(folder / shard_name(0, 1))
    assert table.to_pydict() == {
        "key": ["a/1.png", "ü.jpg"],
        "importance": [[0.5, 0.25, 1.0], [3.0, 2.0, 1.0]],
        "removal_order": [[1, 0, 2], [2, 1, 0]],
    }
    assert read_shard_summary(folder / shard_name(0, 1)) == (2, {"bad.png": "empty file"})


def test_a_shard_may_hold_skipped_images_only(tmp_path):
    empty = np.empty((0, 4), np.float32)
    write_shard(tmp_path / "shard", [], empty, empty.astype(int), {"a": "b"})
    assert read_shard_summary(tmp_path / "shard") == (0, {"a": "b"})


def test_shards_sort_by_name():
    names = [shard_name(index, 12000) for index in (0, 9, 10, 11999)]
    assert names == sorted(names)


def sentence(folder):
    with pytest.raises(UserError) as caught:
        read_rankings(folder)
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
    (folder / "manifest.json").write_text(content)
    assert "manifest.json' is missing or damaged" in sentence(folder)


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
    assert json.loads((folder / "manifest.json").read_text()) == before
