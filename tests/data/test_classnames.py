from __future__ import annotations

import pytest

from patchranking.data.classnames import are_ids, distinct, hidden, lines_beside


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["missile", "missile", "circle"], ["missile", "missile (2)", "circle"]),
        (["a", "a", "a (2)", "a"], ["a", "a (3)", "a (2)", "a (4)"]),
        ([], []),
    ],
)
def test_names_that_come_again_are_told_apart(names, expected):
    assert distinct(names) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        *((["n01440764", "n02102040"], True), (["0", "1"], True), (["class_1", "class_2"], True), (["cat"], False)),
        *((["0", "cat"], False), (["0 - zero", "1 - one"], False), ([], False)),
    ],
)
def test_numbers_are_told_from_words(names, expected):
    assert are_ids(names) == expected


def test_what_the_system_makes_is_no_picture_of_the_user():
    assert [bool(hidden(name)) for name in (".DS_Store", "@eaDir", "LOST+FOUND", "cat", "a.png")] == [1, 1, 1, 0, 0]


def test_lines_beside_come_before_those_one_folder_above(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "names").write_text("above\n")
    assert lines_beside(tmp_path / "in", "names") == ["above"]
    (tmp_path / "in" / "names").write_text("\ufeffbeside\n\n  x \n", encoding="utf-8")
    assert lines_beside(tmp_path / "in", "names") == ["beside", "x"]
    assert lines_beside(tmp_path, "none") == []
