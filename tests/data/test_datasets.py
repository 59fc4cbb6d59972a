from __future__ import annotations

import os
import sys

import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError


@pytest.fixture
def make(tmp_path):
    """Returns a function that draws pictures at paths below a folder; each has its own colour."""

    def pictures(*names, folder="set/val"):
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / name)
        return root

    return pictures


def sentence(*arguments, **options):
    with pytest.raises(UserError) as caught:
        load_data(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sub_folders_are_classes(make):
    data = load_data(str(make("red_fox/b.png", "red_fox/a.PNG", "bee/deep/er/c.jpg", "bee/notes.txt.png")))
    assert data.keys == ["bee/deep/er/c.jpg", "bee/notes.txt.png", "red_fox/a.PNG", "red_fox/b.png"]
    assert data.class_names == ["bee", "red fox"]
    assert data.labels == [0, 0, 1, 1]
    assert (data.name, data.split, len(data)) == ("set", "val", 4)
    assert data.mask(0) is None


def test_an_underscore_and_a_space_in_the_name_of_a_class_are_the_same(make):
    data = load_data(str(make("red_fox/a.png", "red fox/b.png", "bee/c.png")))
    assert (data.keys, data.class_names) == (["bee/c.png", "red fox/b.png", "red_fox/a.png"], ["bee", "red fox"])
    assert data.labels == [0, 1, 1]


def test_other_files_are_left_out(make):
    root = make("a/b.png")
    (root / "a" / "readme.txt").write_text("no picture")
    (root / "a" / "folder.png").mkdir()
    Image.new("RGB", (1, 1)).save(root / "a" / ".hidden.png")
    (root / ".trash").mkdir()
    Image.new("RGB", (1, 1)).save(root / ".trash" / "c.png")
    data = load_data(str(root))
    assert (data.keys, data.class_names) == (["a/b.png"], ["a"])


def test_every_suffix_of_a_picture_counts_in_any_case(make):
    root = make("a.jpg", "b.jpeg", "c.png", "d.webp", "e.bmp", "f.gif", "g.tif", "h.TIFF", "i.ppm")
    (root / "j.avif").touch()
    (root / "k.svg").touch()
    assert "".join(key[0] for key in load_data(str(root)).keys) == "abcdefghij"


def test_a_folder_named_like_a_list_is_a_folder(make):
    assert load_data(str(make("a.png", folder="set/val.json"))).keys == ["a.png"]


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("loose.png", "cat/a.png", "dog/b.png")])
def test_pictures_outside_a_class_make_the_set_unlabelled(make, names):
    data = load_data(str(make(*names)))
    assert data.labels is None
    assert data.class_names == []
    assert len(data) == len(names)


def test_joins_folders(make):
    first, second = make("cat/a.png", folder="x/train"), make("cat/a.png", "ant/b.png", folder="x/val")
    data = load_data(f"{first},{second}")
    assert data.keys == ["x/train/cat/a.png", "x/val/ant/b.png", "x/val/cat/a.png"]
    assert data.labels == [1, 0, 1]
    assert (data.name, data.split) == ("x+x", "train+val")


def test_folders_of_the_same_name_have_keys_of_their_own(make):
    folders = [make("c/a.png", folder=f"{place}/x/val") for place in ("here", "there", "here/x")]
    data = load_data(",".join(map(str, folders)))
    assert len(set(data.keys)) == 3
    assert data.keys[:2] == ["here/x/val/c/a.png", "there/x/val/c/a.png"]


def test_keys_do_not_depend_on_how_a_folder_is_written(make, monkeypatch):
    first, second = make("a.png", folder="x/train"), make("a.png", folder="x/val")
    monkeypatch.chdir(first.parent)
    assert load_data("train,./val").keys == load_data(f"{first},{second}").keys


def test_the_same_folder_twice_is_an_error(make):
    root = make("a.png")
    assert "twice" in sentence(f"{root},{root}/../val")


def test_a_folder_with_a_comma_in_its_name(make):
    assert load_data(str(make("a.png", folder="this,that"))).keys == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are valid text there")
def test_file_names_that_are_no_text_have_printable_keys(make):
    root = make("a.png")
    os.rename(root / "a.png", os.fsencode(root) + b"/caf\xe9.png")
    data = load_data(str(root))
    assert data.keys == ["caf\\udce9.png"]
    assert data.image(0).size == (8, 8)


def test_the_limit_is_a_seeded_sample_in_order(make):
    root = str(make(*(f"{index:02d}.png" for index in range(20))))
    every = load_data(root).keys
    sample = load_data(root, limit=6, seed=1)
    assert sample.keys == load_data(root, limit=6, seed=1).keys == sorted(sample.keys)
    assert set(sample.keys) < set(every)
    assert sample.keys != load_data(root, limit=6, seed=2).keys
    assert sample.keys != every[:6]
    assert load_data(root, limit=99).keys == every
    for index, key in enumerate(sample.keys):
        assert sample.image(index).getpixel((0, 0))[0] == int(key[:2])


def test_the_demo_is_deterministic():
    first, again = load_data("demo:val", limit=3), load_data("demo:val", limit=5)
    assert first.keys == again.keys[:3]
    assert first.labels == again.labels[:3]
    assert all(first.image(i).tobytes() == again.image(i).tobytes() for i in range(3))
    assert (first.mask(0) == again.mask(0)).all()


def test_splits_of_the_demo_share_no_scene():
    named = [load_data(f"demo:{split}", limit=2) for split in ("train", "val", "test")]
    assert len({data.image(0).tobytes() for data in named}) == 3
    assert load_data("demo", limit=1, default_split="train").keys == named[0].keys[:1]


def test_the_demo_has_500_scenes_of_the_test_split_where_nothing_else_is_said():
    assert load_data("demo").keys == [f"test/{index:07d}" for index in range(500)]


def test_mistakes_have_one_sentence(make, tmp_path):
    root = make()
    assert "no folder" in sentence(str(tmp_path / "nowhere"))
    assert "nowhere" in sentence(f"{make('a.png', folder='x/y')},{tmp_path / 'nowhere'}")
    assert "no pictures" in sentence(str(root))
    assert "splits" in sentence("demo:holiday", limit=1)
    for limit in (0, -1):
        assert "at least 1" in sentence("demo", limit=limit)
        assert "at least 1" in sentence(str(root), limit=limit)
    for data in ("", ",", f"{root},"):
        assert "no name" in sentence(data)


@pytest.mark.parametrize("data", ["coco:val", "imagenet:", "wsd:data/{000..003}.tar", "HF:cifar10"])
def test_an_unknown_kind_of_data_is_named(data):
    message = sentence(data)
    assert f"'{data.partition(':')[0]}:'" in message
    assert all(form in message for form in ("demo[:split]", "hf:NAME", "wds:SHARDS", "torchvision:NAME", "folder"))


def test_folders_with_a_colon_in_their_name(make, monkeypatch):
    root = make("a.png", folder="this:that")
    other = make("b.png", folder="other")
    monkeypatch.chdir(root.parent)
    assert load_data("this:that").keys == ["a.png"]
    assert len(load_data(f"this:that,{other}")) == 2
    assert "no folder 'nowhere/this:that'" in sentence("nowhere/this:that")
