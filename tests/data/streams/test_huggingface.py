from __future__ import annotations

import io
import pickle

import datasets
import pytest
from PIL import Image

from patchranking.data.images import UnreadableImageError, read_image
from patchranking.data.streams import huggingface, load_stream


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface, "_ROWS_AT_ONCE", 2)


def png(red):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write(folder, **columns):
    pictures = [{"bytes": png(red), "path": None} for red in range(4)] + [None]
    rows = datasets.Dataset.from_dict({"picture": pictures, **columns})
    folder.mkdir()
    rows.cast_column("picture", datasets.Image()).to_parquet(folder / "test-00000-of-00001.parquet")
    return load_stream(f"hf:{folder}")


def test_rows_have_their_numbers_or_a_column_of_names(tmp_path):
    plain = write(tmp_path / "plain")
    assert [entry.key for entry in plain.entries()] == [f"row-{row:08d}" for row in range(5)]
    named = write(tmp_path / "named", image_id=["d", "c", "", "d", "a"])
    found = list(named.entries())
    assert [entry.key for entry in found] == ["d", "c", "row-00000002", "d", "a"]
    named = pickle.loads(pickle.dumps(named))
    assert [read_image(named.content(entry.place)).getpixel((0, 0))[0] for entry in found[:4]] == [0, 1, 2, 3]
    with pytest.raises(UnreadableImageError, match="no picture"):
        named.content(found[4].place)
    assert (plain.identity, named.identity) == (f"hf:{tmp_path}/plain:test", f"hf:{tmp_path}/named:test")
