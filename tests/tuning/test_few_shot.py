from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.tuning.few_shot import few_shots, hold_out, passes, readable


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, number in (("cat", 6), ("dog", 3)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(number):
            noise = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
            noise.save(tmp_path / "train" / name / f"{index}.png")
    return tmp_path / "train"


def test_shots_are_drawn_by_class_and_seed_and_grow(folder):
    data = load_data(str(folder))
    chosen, skipped = few_shots(data, 4, 0)
    assert ([data.labels[index] for index in chosen], skipped) == ([0, 0, 0, 0, 1, 1, 1], {})
    assert few_shots(data, 4, 0)[0] == chosen
    assert few_shots(data, 4, 1)[0] != chosen
    assert set(few_shots(data, 2, 0)[0]) < set(chosen)


def test_another_image_takes_the_place_of_a_broken_one(folder):
    data = load_data(str(folder))
    first = few_shots(data, 2, 0)[0][0]
    (folder / data.keys[first]).write_bytes(b"no picture")
    chosen, skipped = few_shots(data, 2, 0)
    assert list(skipped) == [data.keys[first]]
    assert first not in chosen
    assert [data.labels[index] for index in chosen] == [0, 0, 1, 1]


def test_classes_are_needed_and_a_readable_image_of_each(folder):
    with pytest.raises(UserError, match="needs classes"):
        few_shots(load_data(str(folder / "cat")), 2, 0)
    with pytest.raises(UserError, match="At least 1 shot"):
        few_shots(load_data(str(folder)), 0, 0)
    for path in (folder / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no readable image of the class 'dog'"):
        few_shots(load_data(str(folder)), 2, 0)
    assert len(readable(load_data(str(folder)))[1]) == 3
    for path in [*(folder / "cat").iterdir()][1:]:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="2 images or more that can be read, not 1"):
        readable(load_data(str(folder)))


def test_a_share_of_each_class_is_held_out():
    labels = [0] * 8 + [1] * 4 + [2]
    tuned, held_out = hold_out(range(13), labels, 0.25)
    assert held_out == [6, 7, 11]
    assert sorted(tuned + held_out) == list(range(13))
    assert hold_out(range(13), None, 0.0) == (list(range(13)), [])
    assert hold_out(range(13), None, 0.25) == ([*range(10)], [10, 11, 12])
    assert hold_out(range(13), labels, 1.0) == ([0, 8, 12], [*range(1, 8), 9, 10, 11]), "one of a class stays"


def test_passes_show_every_image_equally_often():
    order = passes([3, 5, 9], 9, 0)
    assert [sorted(order[start : start + 3]) for start in (0, 3, 6)] == [[3, 5, 9]] * 3
    assert len({tuple(order[start : start + 3]) for start in (0, 3, 6)}) > 1
    assert passes([3, 5, 9], 5, 0) == order[:5]
    assert passes([3, 5, 9], 9, 1) != order
