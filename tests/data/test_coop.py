from __future__ import annotations

import json

import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Flowers in CoOp's layout: pictures in jpg/, the splits beside it."""
    root = tmp_path / "oxford_flowers"
    (root / "jpg").mkdir(parents=True)
    for index, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (4, 4), colour).save(root / "jpg" / f"image_{index}.jpg")
    splits = {
        "train": [["image_0.jpg", 1, "water_lily"], ["image_1.jpg", 0, "rose"]],
        "val": [["image_2.jpg", 1, "water_lily"]],
        "test": [["image_3.jpg", 2, "iris"]],
    }
    (root / "split_zhou_OxfordFlowers.json").write_text(json.dumps(splits))
    return root


@pytest.mark.parametrize("name", ["", "/split_zhou_OxfordFlowers.json"])
def test_a_split_has_its_pictures_and_all_classes(folder, name):
    data = load_data(f"{folder}{name}:train")
    assert (data.name, data.split) == ("oxford_flowers", "train")
    assert data.keys == ["image_0.jpg", "image_1.jpg"]
    assert (data.labels, data.class_names) == ([1, 0], ["rose", "water lily", "iris"])
    assert data.templates == ("a photo of a {}, a type of flower.",)
    assert data.image(0).getpixel((0, 0))[0] > 240
    assert load_data(f"{folder}{name}").keys == ["image_3.jpg"]
    assert load_data(f"{folder}{name}", default_split="val").keys == ["image_2.jpg"]
    assert load_data(f"{folder}{name}:val").labels == [1]


def test_a_sample_keeps_pictures_and_labels_and_all_classes(folder):
    drawn = set()
    for seed in range(9):
        data = load_data(f"{folder}:train", limit=1, seed=seed)
        (key,) = data.keys
        red, green, _ = data.image(0).getpixel((0, 0))
        assert (red > green, data.labels) == ((True, [1]) if key == "image_0.jpg" else (False, [0]))
        assert data.class_names == ["rose", "water lily", "iris"]
        drawn.add(key)
    assert len(drawn) == 2


def test_pictures_beside_the_file_go_first_and_the_first_of_several_files_counts(folder):
    Image.new("RGB", (4, 4), "yellow").save(folder / "image_3.jpg")
    (folder / "split_zhou_Z.json").write_text('{"test": [["image_0.jpg", 0, "other"]]}')
    data = load_data(str(folder))
    assert data.keys == ["image_3.jpg"]
    assert data.image(0).getpixel((0, 0))[2] < 20


def test_missing_pictures_and_bad_files_are_said(folder):
    for path in (folder / "jpg").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"lists for 'train' are not in .*: put them there"):
        load_data(f"{folder}:train")
    (folder / "split_zhou_OxfordFlowers.json").write_text('{"train": [["a.jpg", 0]]}')
    with pytest.raises(UserError, match="no split of CoOp with pictures for 'train'"):
        load_data(f"{folder}:train")
    (folder / "split_zhou_OxfordFlowers.json").write_text("{")
    with pytest.raises(UserError, match="no split of CoOp"):
        load_data(str(folder))


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/secret.jpg", "jpg/../../secret.jpg"])
def test_paths_that_leave_the_folder_are_refused(folder, path):
    (folder / "split_zhou_OxfordFlowers.json").write_text(json.dumps({"test": [[path, 0, "rose"]]}))
    with pytest.raises(UserError, match="is not in its folder"):
        load_data(str(folder))


@pytest.mark.parametrize("entry", [["a.jpg", "0", "rose"], ["a.jpg", 0.9, "rose"], [7, 0, "rose"], ["a.jpg", 0, None]])
def test_values_of_the_wrong_kind_are_refused(folder, entry):
    (folder / "split_zhou_OxfordFlowers.json").write_text(json.dumps({"test": [entry]}))
    with pytest.raises(UserError, match="no split of CoOp"):
        load_data(str(folder))


def test_two_classes_of_one_name_are_told_apart(folder):
    entries = [["image_0.jpg", 0, "missile"], ["image_1.jpg", 1, "missile"]]
    (folder / "split_zhou_OxfordFlowers.json").write_text(json.dumps({"test": entries}))
    assert load_data(str(folder)).class_names == ["missile", "missile (2)"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([["image_0.jpg", 0, "rose"], ["image_1.jpg", 0, "iris"]], "two names for the class 0"),
        ([["image_0.jpg", 0, "rose"], ["image_0.jpg", 1, "iris"]], "lists 'image_0.jpg' in two classes of 'test'"),
        ([["image_0.jpg", 1, "rose"]], "no split of CoOp"),
        ([], "lists no pictures for 'test'"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(folder, entries, said):
    (folder / "split_zhou_OxfordFlowers.json").write_text(json.dumps({"test": entries}))
    with pytest.raises(UserError, match=said):
        load_data(str(folder))


def test_a_picture_that_is_listed_twice_counts_once_and_a_folder_is_no_file_of_splits(folder):
    (folder / "split_zhou_OxfordFlowers.json").write_text(json.dumps({"test": [["image_0.jpg", 0, "rose"]] * 2}))
    assert load_data(str(folder)).keys == ["image_0.jpg"]
    (folder / "split_zhou_A.json").mkdir()
    assert load_data(str(folder)).keys == ["image_0.jpg"]
