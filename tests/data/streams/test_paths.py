from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchranking.data.images import UnreadableImageError, read_image
from patchranking.data.streams import load_stream
from patchranking.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for red, name in enumerate(("a.png", "b c.png")):
        Image.new("RGB", (8, 6), (red, 0, 0)).save(tmp_path / name)
    return tmp_path


def test_lines_are_paths_in_their_order_and_may_come_again(folder):
    elsewhere = folder / "lists"
    elsewhere.mkdir()
    lines = ["../b c.png", str(folder / "a.png"), "", "../b c.png", "../none.png"]
    (elsewhere / "all.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    stream = load_stream(str(elsewhere / "all.txt"))
    found = list(stream.entries())
    assert [entry.key for entry in found] == [lines[0], lines[1], lines[3], lines[4]]
    reds = [read_image(stream.content(entry.place)).getpixel((0, 0))[0] for entry in found[:3]]
    assert reds == [1, 0, 1]
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(stream.content(found[3].place))


@pytest.mark.parametrize("column", ["path", "image_path", "file"])
def test_parquet_has_a_column_of_paths_and_maybe_one_of_keys(folder, column):
    file = folder / "list.parquet"
    pq.write_table(pa.table({"size": [1, 2, 3], column: ["b c.png", "a.png", None]}), file)
    assert [entry.key for entry in load_stream(str(file)).entries()] == ["b c.png", "a.png", "row-00000002"]
    keys = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"key": keys, column: ["b c.png", "a.png", None]}), file, row_group_size=1)
    stream = load_stream(str(file))
    found = list(stream.entries())
    assert [(entry.key, entry.lost) for entry in found] == [("x", ""), ("y", ""), ("x", "no path")]
    assert read_image(stream.content(found[0].place)).getpixel((0, 0)) == (1, 0, 0)


def test_lists_that_are_none(folder):
    (folder / "no.parquet").write_bytes(b"no")
    pq.write_table(pa.table({"path": [1]}), folder / "numbers.parquet")
    for name, words in (("none.txt", "no list of paths"), ("no.parquet", "as Parquet"), ("numbers.parquet", "column")):
        with pytest.raises(UserError, match=words):
            load_stream(str(folder / name))


def test_a_path_with_a_nul_cannot_be_read(folder):
    (folder / "list.txt").write_bytes(b"a\0.png\n")
    stream = load_stream(str(folder / "list.txt"))
    (entry,) = stream.entries()
    with pytest.raises(UnreadableImageError, match="NUL"):
        stream.content(entry.place)
