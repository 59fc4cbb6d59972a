from __future__ import annotations

from pathlib import Path

import pytest

from patchranking.data import load_data, of_classes
from patchranking.data.base import distinct_ends, number_classes, sample
from patchranking.errors import UserError


def test_a_sample_is_seeded_and_ascending():
    assert sample(4, None, 0) == sample(4, 4, 0) == sample(4, 9, 0) == [0, 1, 2, 3]
    chosen = sample(1000, 20, 1)
    assert chosen == sorted(set(chosen)) == sample(1000, 20, 1) != sample(1000, 20, 2)
    assert len(chosen) == 20


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
