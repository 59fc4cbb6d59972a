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
