from __future__ import annotations

import json

import pytest

from patchranking.files import replacing, write_json


def test_json_round_trip_leaves_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as partial:
        partial.write_text(b"half")
    assert path.read_text() == "old"
