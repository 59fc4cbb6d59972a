from __future__ import annotations

import os
import pickle

import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.data.images import read_image
from patchranking.data.streams import folder as module
from patchranking.data.streams import load_stream
from patchranking.data.streams.folder import FolderStream, sorted_names


def save(path, red=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (red, 0, 0)).save(path, "PNG")


def test_lists_what_the_folder_holds_in_a_stable_order_and_reads_it_by_place(tmp_path):
    for red, name in enumerate(("b/2.png", "b/1.png", "a.png", "c/deep/er/x.png", "b.png")):
        save(tmp_path / name, red)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    save(tmp_path / ".hidden/no.png")
    stream = load_stream(str(tmp_path))
    found = list(stream.entries())
    assert [entry.key for entry in found] == ["a.png", "b/1.png", "b/2.png", "b.png", "c/deep/er/x.png"]
    assert list(stream.entries()) == found
    assert stream.left_out == {"hidden": 1, "'.txt' is no suffix of a picture": 1}
    again = pickle.loads(pickle.dumps(stream))
    reds = [read_image(again.content(entry.place)).getpixel((0, 0))[0] for entry in found]
    assert reds == [2, 1, 0, 4, 3]


def test_keys_are_those_of_the_other_commands(tmp_path):
    for name in ("one/cat/1.png", "one/dog/2.png", "two/cat/1.png", "two/dog/ü\n.png"):
        save(tmp_path / name)
    for data in (str(tmp_path / "one"), f"{tmp_path / 'one'},{tmp_path / 'two'}"):
        assert sorted(entry.key for entry in load_stream(data).entries()) == sorted(load_data(data).keys)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 8, 100])
def test_names_are_sorted_in_files_where_there_are_many(tmp_path, monkeypatch, at_once):
    names = ["b", "a\nb", "a", "Z", "ü", "10", os.fsdecode(b"\xe9")]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(module, "_NAMES_AT_ONCE", at_once)
    assert list(sorted_names(str(tmp_path))) == sorted(names)


def test_links_may_form_circles_and_come_last(tmp_path):
    save(tmp_path / "in/z/1.png")
    save(tmp_path / "other/2.png")
    (tmp_path / "in/a").symlink_to(tmp_path / "other")
    (tmp_path / "in/z/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/nothing.png").symlink_to(tmp_path / "nowhere.png")
    stream = FolderStream([tmp_path / "in"])
    assert [entry.key for entry in stream.entries()] == ["z/1.png", "a/2.png"]
    assert stream.left_out == {"the same folder as another": 1, "a link to nothing": 1}


def test_a_name_that_is_no_text_is_found_again(tmp_path):
    save(tmp_path / os.fsdecode(b"\xe9.png"), 9)
    stream = FolderStream([tmp_path])
    (entry,) = stream.entries()
    assert entry.key == "\\udce9.png"
    assert read_image(stream.content(entry.place)).getpixel((0, 0)) == (9, 0, 0)


def test_places_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    save(tmp_path / "in/1.png")
    monkeypatch.chdir(tmp_path)
    near = FolderStream([module.Path("in")])
    assert near.identity == str(tmp_path / "in")
    assert list(near.entries()) == list(FolderStream([tmp_path / "in"]).entries())
