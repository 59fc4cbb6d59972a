from __future__ import annotations

import io
import pickle
import re
import sys

import datasets
import pytest
import torch
from PIL import Image

from patchranking.data import load_data, read_batches
from patchranking.data.images import UnreadableImageError
from patchranking.errors import MissingExtraError, UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(red):
    content = io.BytesIO()
    Image.new("RGB", (8, 6), (red, 0, 0)).quantize(4).save(content, "png")
    return content.getvalue()


def table(length=4, damaged=(), kind=None, **columns):
    """Rows whose pictures' red level is their index; some hold no picture."""
    contents = [b"no picture" if index in damaged else png(index) for index in range(length)]
    rows = datasets.Dataset.from_dict(
        {"picture": [{"bytes": content, "path": None} for content in contents], **columns}
    )
    rows = rows.cast_column("picture", datasets.Image())
    return rows if kind is None else rows.cast_column("label", kind)


def write(folder, **splits):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def sentence(data, **options):
    with pytest.raises(UserError) as caught:
        load_data(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KINDS = datasets.ClassLabel(names=["red_fox", "bee", "ant"])


def test_reads_parquet_files(tmp_path):
    rows = table(kind=KINDS, label=[2, 0, 0, 2], image_id=["d", "c", "b", "a"])
    data = load_data(write(tmp_path / "flowers", test=rows, train=rows.select([0])))
    assert (data.name, data.split, len(data)) == ("flowers", "test", 4)
    assert data.keys == ["d", "c", "b", "a"]
    assert data.class_names == ["red fox", "bee", "ant"]
    assert data.labels == [2, 0, 0, 2]
    assert data.templates == ("a photo of a {}, a type of flower.",)
    assert [data.image(index).getpixel((0, 0)) for index in range(4)] == [(index, 0, 0) for index in range(4)]


def test_reads_class_folders(tmp_path):
    for kind in ("red_fox", "bee"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        (tmp_path / "set" / kind / "a.png").write_bytes(png(9))
        (tmp_path / "set" / kind / "b.png").write_bytes(b"")
    data = load_data(f"hf:{tmp_path / 'set'}")
    assert (data.split, data.class_names, data.labels) == ("train", ["bee", "red fox"], [0, 0, 1, 1])
    assert data.keys == ["row-00000000", "row-00000001", "row-00000002", "row-00000003"]
    assert data.image(2).getpixel((0, 0)) == (9, 0, 0)
    with pytest.raises(UnreadableImageError, match="empty file"):
        data.image(3)


@pytest.mark.parametrize("splits", [{"train": 3}, {"train": 2, "test": 3}])
def test_reads_what_save_to_disk_wrote(tmp_path, splits):
    made = {split: table(length) for split, length in splits.items()}
    whole = datasets.DatasetDict(made) if len(made) > 1 else made["train"]
    whole.save_to_disk(tmp_path / "saved")
    data = load_data(f"hf:{tmp_path / 'saved'}")
    assert (len(data), data.split) == (3, "test" if len(made) > 1 else "all")


def test_damaged_pictures_are_skipped_with_a_reason(tmp_path):
    rows = table(5, damaged=[1, 3])
    data = load_data(write(tmp_path / "set", test=rows))
    skipped = {}
    found = [i for images, _ in read_batches(data, lambda _: torch.zeros(3, 1, 1), 2, skipped) for i in images]
    assert found == [0, 2, 4]
    assert list(skipped) == ["row-00000001", "row-00000003"]
    assert all("cannot identify" in reason for reason in skipped.values())


def test_a_row_without_a_picture_is_unreadable(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [None, {"bytes": png(1), "path": None}]}, features)
    data = load_data(write(tmp_path / "set", test=rows))
    with pytest.raises(UnreadableImageError, match="no picture"):
        data.image(0)
    assert data.image(1).getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize(
    ("columns", "kind", "class_names", "labels"),
    [
        ({"label": ["bee", "red_fox", "bee", "ant"]}, None, ["ant", "bee", "red fox"], [1, 2, 1, 0]),
        ({"labels": [3, 1, 1, 3]}, None, ["1", "3"], [1, 0, 0, 1]),
        ({"class": [8, 8, 9, 9], "label": [0, 1, 2, 0]}, KINDS, ["red fox", "bee", "ant"], [0, 1, 2, 0]),
        ({"label": [0, 1, -1, 0]}, KINDS, [], None),
        ({"label": [0, 1, None, 0]}, KINDS, [], None),
        ({"label": [0.5, 1, 2, 3]}, None, [], None),
        ({"label": ["bee", "", "bee", "ant"]}, None, [], None),
        ({"target": list("abca"), "fine_label": [5, 6, 6, 6], "labels": [4, 4, 4, 4]}, None, ["4"], [0, 0, 0, 0]),
        ({"target": list("abca"), "cls": [9, 8, 8, 8], "fine_label": [5, 6, 6, 6]}, None, ["5", "6"], [0, 1, 1, 1]),
        ({"caption": list("abcd")}, None, [], None),
    ],
)
def test_finds_the_labels(tmp_path, columns, kind, class_names, labels):
    data = load_data(write(tmp_path / "set", test=table(kind=kind, **columns)))
    assert (data.class_names, data.labels) == (class_names, labels)


@pytest.mark.parametrize(
    ("columns", "kind", "text", "class_names", "note"),
    [
        ({"label": [2, 0, 0, 2]}, None, "fox\nbee\nant", ["fox", "bee", "ant"], ""),
        ({"label": [3, 0, 0, 2]}, None, "fox\nbee\nant", ["0", "2", "3"], "no line 4 for class 3"),
        ({"label": list("baab")}, None, "a bee\nb red fox", ["bee", "red fox"], ""),
        (
            {"label": [1, 0, 0, 1]},
            datasets.ClassLabel(names=["n02102040", "n01440764"]),
            "n01440764 tench\nn02102040 springer",
            ["springer", "tench"],
            "",
        ),
        ({"label": [1, 0, 0, 1]}, datasets.ClassLabel(names=["cat", "dog"]), "ant", ["cat", "dog"], "left aside"),
    ],
)
def test_classnames_name_the_classes_of_a_local_folder(tmp_path, columns, kind, text, class_names, note):
    name = write(tmp_path / "set", test=table(kind=kind, **columns))
    for place in (tmp_path, tmp_path / "set"):
        (place / "classnames.txt").write_text(text)
        data = load_data(name)
        assert data.class_names == class_names
        assert [data.class_names[label] for label in data.labels[:2]] == [data.class_names[-1], data.class_names[0]]
        assert note in " ".join(data.notes)
        (place / "classnames.txt").unlink()


def test_classnames_name_class_folders_read_by_datasets(tmp_path):
    for kind in ("n02102040", "n01440764"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        (tmp_path / "set" / kind / "a.png").write_bytes(png(9))
    (tmp_path / "set" / "classnames.txt").write_text("n01440764 tench\nn02102040 springer\n")
    data = load_data(f"hf:{tmp_path / 'set'}")
    assert (data.class_names, data.labels, list(data.notes)) == (["tench", "springer"], [0, 1], [])


def test_whole_numbers_of_any_type_and_class_labels_of_any_name_are_labels(tmp_path):
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("uint8"), "kind": KINDS})
    content = {"bytes": png(0), "path": None}
    rows = datasets.Dataset.from_dict({"picture": [content] * 2, "label": [9, 4], "kind": [2, 1]}, features)
    data = load_data(write(tmp_path / "declared", test=rows))
    assert (data.class_names, data.labels) == (["red fox", "bee", "ant"], [2, 1])
    data = load_data(write(tmp_path / "usual", test=rows.remove_columns("kind")))
    assert (data.class_names, data.labels) == (["4", "9"], [1, 0])


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image_id": list("abcd"), "id": list("efgh")}, list("efgh")),
        ({"__key__": list("abcd"), "image_id": list("efgh")}, list("efgh")),
        ({"id": list("aacd"), "image_id": list("efgh")}, list("efgh")),
        ({"id": list("abcd"), "key": list("efgh")}, list("efgh")),
    ],
)
def test_the_first_usable_column_of_names_gives_the_keys(tmp_path, columns, expected):
    assert load_data(write(tmp_path / "set", test=table(**columns))).keys == expected


def test_long_texts_are_keys_too(tmp_path):
    rows = table(id=list("abcd")).cast_column("id", datasets.Value("large_string"))
    assert load_data(write(tmp_path / "set", test=rows)).keys == list("abcd")


def test_the_first_of_several_columns_of_pictures_is_read(tmp_path):
    contents = [{"bytes": png(level), "path": None} for level in (1, 2)]
    features = datasets.Features({"b": datasets.Image(), "a": datasets.Image()})
    rows = datasets.Dataset.from_dict({"b": contents[:1], "a": contents[1:]}, features)
    assert load_data(write(tmp_path / "set", test=rows)).image(0).getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize("key", [["a", "b", "b", "c"], ["a", "b", None, "c"], ["a", "b", "", "c"], [0, 1, 2, 3]])
def test_columns_that_do_not_tell_rows_apart_by_name_are_no_keys(tmp_path, key):
    data = load_data(write(tmp_path / "set", test=table(key=key)))
    assert data.keys[3] == "row-00000003"


def test_the_limit_is_a_seeded_sample_in_order(tmp_path):
    labels = [index % 3 for index in range(20)]
    name = write(tmp_path / "set", test=table(20, kind=KINDS, label=labels))
    data = load_data(name, limit=6, seed=1)
    rows = [int(key[4:]) for key in data.keys]
    assert rows == sorted(set(rows)) != list(range(6))
    assert len(data) == 6
    assert data.keys == load_data(name, limit=6, seed=1).keys != load_data(name, limit=6, seed=2).keys
    assert data.labels == [row % 3 for row in rows]
    assert [data.image(index).getpixel((0, 0))[0] for index in range(6)] == rows


def test_can_be_pickled(tmp_path):
    data = load_data(write(tmp_path / "set", test=table(20)), limit=3, seed=1)
    again = pickle.loads(pickle.dumps(data))
    assert again.keys == data.keys
    assert [again.image(i).tobytes() for i in range(3)] == [data.image(i).tobytes() for i in range(3)]


def test_chooses_the_split(tmp_path):
    name = write(tmp_path / "set", train=table(2), validation=table(3))
    assert len(load_data(f"{name}:validation")) == 3
    assert load_data(name, default_split="train").split == "train"
    assert "no split 'test': choose one of train, validation" in sentence(name)
    assert "no split 'val'" in sentence(f"{name}:val")
    alone = write(tmp_path / "alone", validation=table(1))
    assert load_data(alone).split == "validation"
    assert "no split 'test'" in sentence(f"{alone}:test")


def test_mistakes_have_one_sentence(tmp_path):
    captions = datasets.Dataset.from_dict({"caption": ["a"], "path": ["b"]})
    assert "columns caption, path" in sentence(write(tmp_path / "captions", test=captions))
    assert "'hf:nobody/nothing'" in sentence("hf:nobody/nothing")
    assert "nowhere" in sentence(f"hf:{tmp_path / 'nowhere'}")
    assert "names no images" in sentence("hf:")


def test_the_cause_of_a_set_that_cannot_be_made_is_told(tmp_path):
    name = write(tmp_path / "set", train=table(1, label=[1]))
    table(1, label=["x"], extra=[1]).to_parquet(tmp_path / "set" / "train-00001-of-00002.parquet")
    assert re.search("Error: .*(extra|column|cast|schema)", sentence(name))


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"patchranking\[data\]"):
        load_data("hf:nobody/nothing")
