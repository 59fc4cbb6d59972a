from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchranking.data import ImageData, load_data, of_classes, subset
from patchranking.data.base import distinct_ends, number_classes, printable, sample
from patchranking.errors import UserError


def test_a_sample_is_seeded_and_ascending():
    assert sample(4, None, 0) == sample(4, 4, 0) == sample(4, 5, 0) == sample(4, 9, 0) == [0, 1, 2, 3]
    chosen = sample(1000, 20, 1)
    assert chosen == sorted(set(chosen)) == sample(1000, 20, 1) != sample(1000, 20, 2)
    assert len(chosen) == 20
    for seed in range(20):
        assert len(set(sample(10, 9, seed))) == 9
    assert {index for seed in range(40) for index in sample(5, 1, seed)} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("classes", "names", "expected"),
    [
        (["fox", "bee", "fox"], (), (["bee", "fox"], [1, 0, 1])),
        (["red_fox"], (), (["red fox"], [0])),
        ([7, 3, 7, 10], (), (["3", "7", "10"], [1, 0, 1, 2])),
        ([2, 0], ["red_fox", "bee", "ant"], (["red fox", "bee", "ant"], [2, 0])),
        ([2, -1, 0], ["a", "b", "c"], (["a", "b", "c"], [2, -1, 0])),
        ([7, -1], (), (["7"], [0, -1])),
        ([1, None], ["a", "b"], ([], None)),
        ([-1, -1], ["a", "b"], ([], None)),
    ],
)
def test_numbers_classes(classes, names, expected):
    assert number_classes(classes, names) == expected


def test_a_class_beyond_the_names_is_an_error():
    with pytest.raises(UserError, match=r"class 2.* 0 to 1 "):
        number_classes([0, 2], ["a", "b"])


def test_distinct_ends():
    assert distinct_ends([Path("/x/a/0"), Path("/x/a/1")], 1) == ["0", "1"]
    assert distinct_ends([Path("/x/a/0"), Path("/x/b/0"), Path("/x/b/1")], 1) == ["a/0", "b/0", "b/1"]
    assert distinct_ends([Path("/x/a/0"), Path("/x/a/1")], 2) == ["a/0", "a/1"]
    with pytest.raises(UserError, match="twice"):
        distinct_ends([Path("/x/a"), Path("/x/b/../a")], 1)


def test_base_and_new_classes_are_the_two_halves():
    data = load_data("demo:val", 60)
    base, new = of_classes(data, "base"), of_classes(data, "new")
    half = (len(data.class_names) + 1) // 2
    assert base.class_names + new.class_names == data.class_names
    assert len(base.class_names) == half
    assert sorted(base.keys + new.keys) == data.keys
    for part in (base, new):
        for index, key in enumerate(part.keys):
            whole = data.keys.index(key)
            assert part.class_names[part.labels[index]] == data.class_names[data.labels[whole]]
            assert part.image(index) == data.image(whole)
    assert of_classes(data, "all") is data


def test_captions_have_no_classes_to_halve(tmp_path):
    (tmp_path / "list.tsv").write_text("image\tcaption\na.png\tred\n")
    with pytest.raises(UserError, match="halves of 2 classes or more"):
        of_classes(load_data(str(tmp_path / "list.tsv")), "base")


class Listed(ImageData):
    """Images of given classes; the red level of the picture and of the mask's corner is the number of the image."""

    def __init__(self, labels, class_names):
        self.name, self.split, self.labels, self.class_names = "things", "val", labels, class_names
        self.keys = [f"image {index}" for index in range(len(labels))]
        self.captions = [[f"caption {index}"] for index in range(len(labels))]
        self.templates = ("one {}.", "two {}.")

    def image(self, index):
        return Image.new("RGB", (2, 2), (index, 0, 0))

    def mask(self, index):
        return np.arange(len(self)) == index


def number_of(part, index):
    """Which image an image of a part is, the same by all that is known of it."""
    number = int(part.keys[index].split()[1])
    assert part.image(index).getpixel((0, 0)) == (number, 0, 0)
    assert part.mask(index).nonzero()[0].tolist() == [number]
    assert part.captions[index] == [f"caption {number}"]
    return number


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_subset_is_a_seeded_sample_with_all_that_belongs_to_its_images(seed):
    data = Listed([index % 3 for index in range(9)], ["a", "b", "c"])
    part = subset(data, 4, seed)
    numbers = [number_of(part, index) for index in range(len(part))]
    assert numbers == sample(9, 4, seed)
    assert part.labels == [number % 3 for number in numbers]
    assert (part.name, part.split, part.class_names, part.templates) == (
        "things",
        "val",
        ["a", "b", "c"],
        data.templates,
    )
    assert subset(data, 9, seed) is subset(data, 10, seed) is data


def test_a_subset_of_unlabelled_images_is_unlabelled():
    data = Listed([0, 1, 2], ["a", "b", "c"])
    data.labels = data.captions = None
    assert (subset(data, 2, 0).labels, subset(data, 2, 0).captions) == (None, None)


@pytest.mark.parametrize(
    ("length", "base", "new"), [(2, ["c0"], ["c1"]), (3, ["c0", "c1"], ["c2"]), (5, ["c0", "c1", "c2"], ["c3", "c4"])]
)
def test_halves_of_classes_are_numbered_from_0_and_the_first_is_rounded_up(length, base, new):
    labels = [*reversed(range(length)), -1, 0, length - 1]
    data = Listed(labels, [f"c{number}" for number in range(length)])
    for half, names in (("base", base), ("new", new)):
        part = of_classes(data, half)
        assert part.class_names == names
        numbers = [number_of(part, index) for index in range(len(part))]
        assert numbers == [number for number, label in enumerate(labels) if f"c{label}" in names]
        assert [part.class_names[label] for label in part.labels] == [f"c{labels[number]}" for number in numbers]
    assert data.labels == labels


def test_one_class_has_no_halves():
    with pytest.raises(UserError, match="halves of 2 classes or more"):
        of_classes(Listed([0, 0], ["a"]), "new")


def test_names_that_are_no_text_can_be_printed():
    assert printable("caf\udce9.png") == "caf\\udce9.png"
    assert printable("café.png") == "café.png"
