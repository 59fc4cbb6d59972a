from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from patchranking.errors import UserError
from patchranking.files import as_file_name, locked, make_folder, replacing, replacing_folder, write_json


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


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("one")
        with replacing(path) as second:
            second.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_writer_left_goes_once_it_is_old(tmp_path):
    old, young, other = (tmp_path / name for name in ("a[1].x.partial", "a[1].y.partial", "b.x.partial"))
    for path in (old, young, other):
        path.touch()
        os.utime(path, (0, 0) if path != young else None)
    with replacing(tmp_path / "a[1]") as partial:
        partial.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a[1]", young.name, other.name}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    assert make_folder(tmp_path / "new" / "one") == tmp_path / "new" / "one"
    assert not list((tmp_path / "new" / "one").iterdir())

    def full(dir):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"Cannot write in the folder '.*': No space left on device\.$"):
        make_folder(tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "~nobody-of-this-name/\0"])
def test_a_name_that_no_folder_can_have_is_said_in_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match=r"can be no folder's name|File name too long"):
        make_folder(f"{tmp_path}/{name}" if name[0] != "~" else name)


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "out"
    with replacing_folder(folder) as partial:
        (partial / "first").write_text("1")
        assert not folder.exists()
    with pytest.raises(TypeError), replacing_folder(folder) as partial:
        (partial / "second").write_text(b"half")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first", "out"]
    with replacing_folder(folder) as partial:
        (partial / "third").write_text("3")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "third"]


def test_what_a_killed_writer_of_a_folder_left_goes_once_it_is_old(tmp_path):
    old, new = (tmp_path / f"out.{name}.partial" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
        (left / "half").touch()
    os.utime(old, (0, 0))
    with replacing_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.new.partial"]


HOLD = """
import sys, time
from pathlib import Path
from patchranking.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_for_one_process_and_ends_with_it(tmp_path):
    path = tmp_path / "_lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"Another run is writing into '{tmp_path}'"), locked(path):
            pass
        other.kill()
    with locked(path):
        pass
