from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchranking.embedding.store import NumpyStore, ParquetStore, Shard, store_of
from patchranking.errors import UserError


def shard(dtype=np.float16, errors=("", "why", "", "other")):
    vectors = np.arange(12).reshape(4, 3).astype(dtype) / 4
    width = np.array([4, 0, 6, 7], np.int32)
    return Shard(list("abca"), vectors, list(errors), {"width": width, "height": width * 2})


@pytest.fixture(params=["parquet", "npy"])
def store(request, tmp_path):
    return store_of(tmp_path, request.param)


@pytest.mark.parametrize("errors", [("", "why", "", "other"), ("",) * 4, ("all",) * 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read(store, dtype, errors):
    given = shard(dtype, errors)
    store.write(3, given)
    found = store.read(3)
    assert (found.keys, found.errors) == (given.keys, given.errors)
    assert found.vectors.dtype == dtype
    np.testing.assert_array_equal(found.vectors, np.where(given.good[:, None], given.vectors, 0))
    assert list(found.columns) == ["width", "height"]
    for name, column in given.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)
    rows, reasons = store.account(3)
    assert rows == 4
    assert reasons == {error: errors.count(error) for error in errors if error}


def test_parquet_has_a_row_an_image(tmp_path):
    ParquetStore(tmp_path).write(3, shard())
    table = pq.read_table(tmp_path / "shard-00003.parquet")
    assert table.column_names == ["key", "embedding", "width", "height", "status", "error"]
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 3)
    assert table["status"].to_pylist() == ["ok", "failed", "ok", "failed"]
    assert table["error"].to_pylist() == [None, "why", None, "other"]
    assert table["width"].to_pylist() == [4, None, 6, 7]
    assert [None if row is None else list(map(float, row)) for row in table["embedding"].to_pylist()] == [
        [0, 0.25, 0.5],
        None,
        [1.5, 1.75, 2],
        None,
    ]
    assert pq.ParquetFile(tmp_path / "shard-00003.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_numpy_has_the_layout_of_clip_retrieval(tmp_path):
    NumpyStore(tmp_path).write(3, shard())
    vectors = np.load(tmp_path / "img_emb/img_emb_00003.npy")
    metadata = pq.read_table(tmp_path / "metadata/metadata_00003.parquet")
    np.testing.assert_array_equal(vectors, shard().vectors[[0, 2]])
    assert metadata.to_pydict() == {"image_path": ["a", "c"], "width": [4, 6], "height": [8, 12]}
    failed = pq.read_table(tmp_path / "failed/failed_00003.parquet").to_pydict()
    assert failed == {
        "row": [1, 3],
        "key": ["b", "a"],
        "width": [None, 7],
        "height": [None, 14],
        "error": ["why", "other"],
    }


def test_texts_are_a_column(store):
    given = shard()
    given.columns = {"caption": ["one", "", "drei", "猫"]}
    store.write(0, given)
    assert store.read(0).columns == given.columns


def test_a_shard_of_numpy_is_unfinished_while_it_is_replaced(tmp_path, monkeypatch):
    store = NumpyStore(tmp_path)
    store.write(0, shard())
    monkeypatch.setattr(pq, "write_table", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.write(0, shard(errors=("",) * 4))
    assert not store.path(0).exists()


def test_a_damaged_shard_is_named(store, tmp_path):
    store.write(0, shard())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"no")
    for read in (store.read, store.account):
        with pytest.raises(UserError, match="delete it and run"):
            read(0)
