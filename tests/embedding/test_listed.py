from __future__ import annotations

import random

import pytest

from patchranking.data.streams import Entry
from patchranking.embedding import listed as module
from patchranking.embedding.listed import Listed
from patchranking.errors import UserError


def entries(*keys):
    return [Entry(key, b"\0\xff" + key.encode(), "lost" if key == "l" else "") for key in keys]


def test_shards_hold_the_entries_in_their_order(tmp_path):
    listed = Listed(tmp_path / "_list")
    assert (len(listed), listed.shards) == (0, 0)
    given = entries(*"bablcde")
    assert listed.extend(iter(given), 3) == 7
    again = Listed(tmp_path / "_list")
    for own in (listed, again):
        assert (len(own), own.shards, own.sizes) == (7, 3, [3, 3, 1])
        assert [entry for shard in range(3) for entry in own.entries(shard)] == given


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_only_what_is_new_is_added_however_often_it_is_named(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    listed = Listed(tmp_path / "_list")
    listed.extend(entries(*"abca"), 2)
    known = entries(*"abca")
    random.Random(0).shuffle(known)
    assert listed.extend(known, 2) == 0
    assert len(list((tmp_path / "_list").iterdir())) == 1
    assert listed.extend(entries(*"acxaay"), 2) == 3
    assert [entry.key for shard in range(listed.shards) for entry in listed.entries(shard)] == list("abcaxay")
    assert listed.sizes == [2, 2, 2, 1]
    assert listed.extend(entries(*"aaaxyz"), 5) == 1


def test_nothing_makes_no_file(tmp_path):
    assert Listed(tmp_path / "_list").extend([], 2) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_fails_adds_nothing(tmp_path):
    def failing():
        yield from entries(*"abc")
        raise OSError("gone")

    listed = Listed(tmp_path / "_list")
    with pytest.raises(OSError, match="gone"):
        listed.extend(failing(), 2)
    assert list((tmp_path / "_list").iterdir()) == []


def test_a_damaged_list_is_named(tmp_path):
    Listed(tmp_path / "_list").extend(entries("a"), 2)
    (path,) = (tmp_path / "_list").iterdir()
    path.write_bytes(b"no")
    with pytest.raises(UserError, match="is damaged"):
        Listed(tmp_path / "_list")
