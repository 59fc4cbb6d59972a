from __future__ import annotations

import json

import pytest
from PIL import Image

from patchranking.data import load_data, subset
from patchranking.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / "set" / "pictures" / f"{name}.png")
    return tmp_path / "set"


LISTS = {
    "val.tsv": 'image\tcaption\npictures/a.png\tA "red" square\npictures/b.png\ttwo\npictures/a.png\tred\n',
    "val.csv": 'image,caption\npictures/a.png,"A ""red"" square"\npictures/b.png,two\npictures/a.png,red\n',
    "val.json": json.dumps(
        [
            {"image": "pictures/a.png", "captions": ['A "red" square', "red"]},
            {"image": "pictures/b.png", "caption": "two"},
        ]
    ),
    "coco.json": json.dumps(
        {
            "images": [{"id": 7, "file_name": "pictures/a.png"}, {"id": 9, "file_name": "pictures/b.png"}],
            "annotations": [
                {"image_id": 7, "caption": 'A "red" square'},
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
    assert data.captions == [['A "red" square', "red"], ["two"]]
    assert (data.labels, data.class_names) == (None, [])
    assert data.image(0).getpixel((0, 0)) == (255, 0, 0)
    assert subset(data, 1, 0).captions in ([data.captions[0]], [data.captions[1]])


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
