from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from patchranking.embedding.index import Index, nearest
from patchranking.embedding.store import MANIFEST
from patchranking.errors import UserError


@pytest.fixture(params=["parquet", "npy"])
def index(request, embedded):
    return Index(embedded("out", form=request.param))


def test_keys_vectors_and_entries_belong_together(index, pictures, expected):
    vectors = torch.cat(list(index.blocks()))
    assert len(index) == len(expected) == 8
    assert set(index.keys()) == set(expected)
    for place, (key, vector) in enumerate(zip(index.keys(), vectors, strict=True)):
        assert index.entry(place).key == key
        assert index.entry(place).place == bytes(pictures / key)
        np.testing.assert_allclose(vector, expected[key] / np.linalg.norm(expected[key]), atol=1e-5)


def test_a_shard_that_is_not_there_yet_is_left_out(embedded, expected):
    folder = embedded("out")
    whole = list(Index(folder).keys())
    (folder / "shard-00000.parquet").unlink()
    index = Index(folder)
    gone = len(whole) - len(index)
    assert 0 < gone < len(whole)
    assert list(index.keys()) == whole[gone:]
    assert [index.entry(place).key for place in range(len(index))] == whole[gone:]


def test_what_is_no_index_is_refused(embedded, tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="holds no vectors of images"):
            Index(folder)
    folder = embedded("out")
    for shard in folder.glob("shard-*"):
        shard.unlink()
    with pytest.raises(UserError, match="holds no vectors yet"):
        Index(folder)
    for content in ("[1]", "{", json.dumps({"model": "demo"})):
        (folder / MANIFEST).write_text(content)
        with pytest.raises(UserError, match="holds no vectors of images"):
            Index(folder)


@pytest.mark.parametrize("size", [1, 4, 30])
def test_the_nearest_are_those_of_a_whole_sort(size):
    generator = torch.Generator().manual_seed(0)
    vectors, queries = torch.randn(23, 6, generator=generator), torch.randn(3, 6, generator=generator)
    cosines, places = nearest(queries, vectors.split(size), 5)
    every = queries @ vectors.T
    assert torch.equal(places, every.argsort(dim=1, descending=True)[:, :5])
    torch.testing.assert_close(cosines, every.gather(1, places))
    assert nearest(queries, vectors.split(size), 40)[1].shape == (3, 23)
