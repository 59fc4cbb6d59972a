from __future__ import annotations

import json

import pytest

from patchranking.files import as_file_name, replacing, write_json


def test_json_round_trip_leaves_nothing_else(tmp_path):
    for content in ({"b": 1}, {"b": [1, None]}):
        write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1,\n    null\n  ]\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as partial:
        partial.write_text(b"half")
    assert path.read_text() == "old"


def test_what_cannot_be_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", [2, object()])
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_the_file_is_written_beside_and_appears_at_the_end(tmp_path):
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "a.json") as second:
        assert {first.parent, second.parent} == {tmp_path}
        first.write_text("one")
        second.write_text("two")
        assert not (tmp_path / "a.txt").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "one", "a.json": "two"}


def test_a_file_name_has_letters_digits_and_dashes_only():
    assert as_file_name("hf:Org/CLIP_b16 é") == "hf-Org-CLIP-b16-é"
