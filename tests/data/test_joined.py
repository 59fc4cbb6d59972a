from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from patchranking.data import joined, load_data, shared_pictures


@pytest.fixture
def folder(tmp_path):
    """Returns a function that fills a folder: file name -> level of grey."""

    def fill(name, levels):
        for file, level in levels.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(path)
        return load_data(str(tmp_path / name))

    return fill


def test_sets_follow_one_another_without_labels(folder):
    first, second = folder("a/train", {"cat/0.png": 0, "dog/1.png": 1}), folder("b/train", {"0.png": 2})
    both = pickle.loads(pickle.dumps(joined([first, second])))
    assert both.keys == ["a/train/cat/0.png", "a/train/dog/1.png", "b/train/0.png"]
    assert [both.image(index).getpixel((0, 0))[0] for index in range(3)] == [0, 1, 2]
    assert (both.name, both.split, both.labels, both.class_names) == ("a+b", "train", None, [])
    assert joined([first]).keys == both.keys[:2]


def test_sets_of_one_name_are_told_apart_and_keep_what_was_left_out(folder, tmp_path):
    first = folder("a/train", {"0.png": 0})
    (tmp_path / "x/a/train").mkdir(parents=True)
    (tmp_path / "x/a/train/notes.txt").write_text("no picture")
    both = joined([first, folder("x/a/train", {"0.png": 1})])
    assert both.keys == ["a/train-0/0.png", "a/train-1/0.png"]
    assert list(both.left_out) == ["a/train-1/notes.txt"]


def test_masks_are_those_of_the_sets():
    sets = [load_data("demo:val", 2), load_data("demo:test", 2)]
    both = joined(sets)
    assert (both.mask(3) == sets[1].mask(1)).all()
    assert (both.mask(3) != sets[0].mask(1)).any()


def test_shared_pictures_have_the_name_and_the_pixels(folder, tmp_path):
    train = folder("train", {"cat/0.png": 0, "cat/1.png": 1, "dog/0.png": 2})
    test = folder("test", {"x/0.png": 2, "x/1.png": 5, "x/2.png": 0})
    assert shared_pictures(train, test) == ["x/0.png"]
    assert shared_pictures(train, train) == train.keys
    (tmp_path / "test/x/0.png").write_bytes(b"no longer a picture")
    assert shared_pictures(train, test) == []
    (tmp_path / "train/dog/0.png").write_bytes(b"nor is this")
    assert shared_pictures(train, test) == []
    Image.new("RGB", (2, 8), (5, 5, 5)).save(tmp_path / "train/cat/1.png")
    assert shared_pictures(train, test) == []
    Image.new("RGB", (4, 4), (5, 5, 5)).save(tmp_path / "train/cat/1.png")
    assert shared_pictures(train, test) == ["x/1.png"]
