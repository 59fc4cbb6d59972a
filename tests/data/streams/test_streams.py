from __future__ import annotations

import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.data.streams import load_stream, stream_of
from patchranking.data.streams.folder import FolderStream
from patchranking.data.streams.paths import PathStream
from patchranking.errors import UserError


def test_what_is_loaded_becomes_a_stream_under_its_keys():
    data = load_data("demo:val", 3)
    for stream in (stream_of(data), load_stream("demo:val", 3)):
        found = list(stream.entries())
        assert [entry.key for entry in found] == data.keys
        assert stream.content(found[2].place).tobytes() == data.image(2).tobytes()
        assert stream.identity == "demo:val"
    assert stream_of(stream) is stream


def test_a_list_of_captions_names_every_image_once(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("image,caption\na.png,one\na.png,two\nb.png,three\nc.png,\n")
    stream = load_stream(str(tmp_path / "list.csv"))
    assert [entry.key for entry in stream.entries()] == ["a.png", "b.png"]
    assert stream.left_out == {"no caption": 1}


def test_a_folder_and_a_list_are_told_apart(tmp_path):
    (tmp_path / "in.txt").mkdir()
    (tmp_path / "list.txt").write_text("a.png\n")
    assert isinstance(load_stream(str(tmp_path / "in.txt")), FolderStream)
    assert isinstance(load_stream(str(tmp_path / "list.txt")), PathStream)


@pytest.mark.parametrize("data", ["none", "", "wds:", "hf:", "wds:none.tar", "nope:x", "demo:none", "none.csv"])
def test_what_cannot_be_opened_is_said_in_one_sentence(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        load_stream(data, 1)
