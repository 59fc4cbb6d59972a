from __future__ import annotations

import io
import os
import tarfile

import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.data.images import UnreadableImageError, read_image
from patchranking.data.streams import load_stream


def picture(red):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write(path, names, start=0):
    with tarfile.open(path, "w") as tar:
        for red, name in enumerate(names, start):
            content = picture(red)
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


def test_samples_have_the_keys_and_pictures_that_other_commands_see(tmp_path):
    write(tmp_path / "0.tar", ["a.png", "b.png", "b.json"])
    write(tmp_path / "1.tar", ["a.png", "c.txt"], start=7)
    data, stream = load_data(f"wds:{tmp_path}/{{0..1}}.tar"), load_stream(f"wds:{tmp_path}/{{0..1}}.tar")
    found = list(stream.entries())
    assert [entry.key for entry in found] == data.keys
    reds = [read_image(stream.content(entry.place)).getpixel((0, 0))[0] for entry in found]
    assert reds == [0, 1, 7]
    assert stream.left_out == {"no picture in the sample": 1}


def test_a_shard_that_breaks_off_has_a_last_sample_that_is_lost(tmp_path):
    write(tmp_path / "0.tar", ["a.png", "b.png"])
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: 512 + 512 + 512 + 20])
    assert [bool(entry.lost) for entry in load_stream(f"wds:{tmp_path}/0.tar").entries()] == [False, True]


def test_a_shard_that_was_changed_gives_no_other_picture(tmp_path):
    write(tmp_path / "0.tar", ["a.png", "b.png"])
    stream = load_stream(f"wds:{tmp_path}/0.tar")
    first, _ = stream.entries()
    write(tmp_path / "0.tar", ["b.png", "a.png"])
    os.utime(tmp_path / "0.tar", (1, 1))
    with pytest.raises(UnreadableImageError, match=r"'0\.tar' was changed"):
        stream.content(first.place)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UnreadableImageError, match="No such file"):
        stream.content(first.place)
