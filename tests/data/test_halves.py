from __future__ import annotations

import hashlib

import pytest

from patchranking.data import load_data
from patchranking.data.halves import half_of, of_half
from patchranking.errors import UserError


def test_the_half_of_a_picture_is_a_bit_of_the_hash_of_its_folder_and_name():
    for key in ("cat/000.jpg", "x.png", "a/b/c.png"):
        digest = hashlib.sha256("/".join(key.split("/")[-2:]).encode()).hexdigest()
        assert half_of(key) == ("dev" if int(digest[1], 16) % 2 else "test")
    assert half_of("a/b/c.png") == half_of("b/c.png") == half_of("z/b/c.png")


def test_the_halves_make_up_the_whole_and_share_nothing():
    data = load_data("demo:test", 200)
    halves = {half: of_half(data, half) for half in ("dev", "test")}
    keys = [key for half in halves.values() for key in half.keys]
    assert sorted(keys) == sorted(data.keys)
    assert 70 < len(halves["dev"]) < 130
    for half in halves.values():
        for index in (0, 5):
            whole = data.keys.index(half.keys[index])
            assert half.labels[index] == data.labels[whole]
            assert half.image(index).tobytes() == data.image(whole).tobytes()
    assert of_half(data, "all") is data


def test_a_half_without_pictures_or_of_another_name_is_refused():
    one = load_data("demo:test", 1)
    (empty,) = {"dev", "test"} - {half_of(one.keys[0])}
    with pytest.raises(UserError, match="take more pictures"):
        of_half(one, empty)
    with pytest.raises(UserError, match="choose from dev, test, all"):
        of_half(one, "val")
