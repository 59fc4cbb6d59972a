from __future__ import annotations

import json

import pytest
from PIL import Image

from patchranking.data import load_data, subset
from patchranking.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / "set" / "pictures" / f"{name}.png")
    return tmp_path / "set"


LISTS = {
    "val.tsv": 'image\tcaption\npictures/a.png\t"Red", square \npictures/b.png\ttwo\npictures/a.png\tred\n',
    "val.csv": 'image,caption\npictures/a.png,"""Red"", square "\npictures/b.png,two\npictures/a.png,red\n',
    "val.json": json.dumps(
        [
            {"image": "pictures/a.png", "captions": ['"Red", square ', "red"], "caption": "left out"},
            {"image": "pictures/b.png", "caption": "two"},
        ]
    ),
    "coco.json": json.dumps(
        {
            "images": [{"id": 7, "file_name": "pictures/a.png"}, {"id": 9, "file_name": "pictures/b.png"}],
            "annotations": [
                {"image_id": 7, "caption": '"Red", square '},
                {"image_id": 9, "caption": "two"},
                {"image_id": 7, "caption": "red"},
            ],
        }
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_every_kind_of_list_gives_images_and_captions(folder, name):
    (folder / name).write_text(LISTS[name])
    data = load_data(str(folder / name))
    assert (data.name, data.split) == ("set", name.partition(".")[0])
    assert data.keys == ["pictures/a.png", "pictures/b.png"]
    assert data.captions == [['"Red", square', "red"], ["two"]]
    assert (data.labels, data.class_names) == (None, [])
    assert [data.image(index).getpixel((0, 0)) for index in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def test_a_sample_of_images_keeps_their_captions(folder):
    (folder / "val.tsv").write_text(LISTS["val.tsv"])
    whole = load_data(str(folder / "val.tsv"))
    drawn = set()
    for seed in range(9):
        for part in (load_data(str(folder / "val.tsv"), limit=1, seed=seed), subset(whole, 1, seed)):
            (key,) = part.keys
            index = whole.keys.index(key)
            assert part.captions == [whole.captions[index]]
            assert part.image(0) == whole.image(index)
            drawn.add(key)
    assert drawn == {*whole.keys}


def test_captions_are_utf_8_and_the_kind_of_list_is_told_by_its_name_in_any_case(folder):
    (folder / "VAL.TSV").write_text("image\tcaption\npictures/a.png\tein grünes Quadrat, groß\n", encoding="utf-8")
    assert load_data(str(folder / "VAL.TSV")).captions == [["ein grünes Quadrat, groß"]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "picture\ttext\na.png\tred\n", "needs columns image and caption"),
        ("x.tsv", "", "names no images"),
        ("x.csv", "image,caption\n", "names no images"),
        ("x.csv", "image,caption\na.png,one\nb.png,a cat, a dog\n", "has 3 fields in line 3 and 2 in its head"),
        ("x.csv", "image,caption\na.png\n", "has 1 fields in line 2"),
        ("x.csv", 'image,caption\na.png,"a cat\nb.png,two\n', "needs columns image and caption"),
        ("x.tsv", "image\tcaption\na.png\ta cat\ta dog\n", "has 3 fields in line 2"),
        ("x.json", '[{"image": "a.png", "caption": null}]', "needs columns image and caption"),
        ("x.json", '[{"image": "a.png", "captions": "red"}]', "needs columns image and caption"),
        ("x.json", '[{"image": 7, "caption": "red"}]', "needs columns image and caption"),
        ("x.csv", "image,caption\n../a.png,red\n", "a path that leaves the folder"),
        ("x.json", "{", "needs columns image and caption"),
        ("x.json", "[1]", "needs columns image and caption"),
    ],
)
def test_a_bad_list_is_said_in_one_sentence(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_data(str(folder / name))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no list of captions '.*none\.tsv'"):
        load_data(str(tmp_path / "none.tsv"))


def test_a_quoted_comma_further_columns_and_a_byte_order_mark_are_fine(folder):
    (folder / "x.csv").write_text('\ufeffid,image,caption\n7,pictures/a.png,"a cat, a dog"\n\n', encoding="utf-8")
    assert load_data(str(folder / "x.csv")).captions == [["a cat, a dog"]]


def test_paths_that_leave_the_folder_are_left_out(folder):
    names = ["../secret.png", "pictures/../../secret.png", "/etc/secret.png", "pictures/../pictures/a.png", "..\\b.png"]
    (folder / "x.json").write_text(json.dumps([{"image": name, "caption": "red"} for name in names]))
    data = load_data(str(folder / "x.json"))
    assert data.keys == [names[3]]
    assert data.image(0).size == (4, 4)
    assert set(data.left_out) == {*names} - {names[3]}
    assert set(data.left_out.values()) == {"a path that leaves the folder of the list"}


def test_images_without_a_caption_are_left_out(folder):
    images = [{"id": number, "file_name": f"pictures/{number}.png"} for number in range(3)]
    captions = [{"image_id": 1, "caption": "red"}, {"image_id": 2, "caption": " "}]
    (folder / "x.json").write_text(json.dumps({"images": images, "annotations": captions}))
    data = load_data(str(folder / "x.json"))
    assert (data.keys, data.captions) == (["pictures/1.png"], [["red"]])
    assert data.left_out == {"pictures/0.png": "no caption", "pictures/2.png": "no caption"}
