from __future__ import annotations

import numpy as np
import pytest

from patchranking.data.demo import DemoData, by_colour
from patchranking.demo import scenes


@pytest.mark.parametrize("split", ["train", "val-sketch"])
def test_it_is_the_first_scenes_of_the_split(split):
    data = DemoData(split, 4)
    assert (data.name, data.split, len(data)) == ("demo", split, 4)
    assert data.class_names == list(scenes.CLASSES)
    assert data.templates == ("a {}.", "a photo of a {}.", "a picture of a {}.", "a {} on a background.")
    for index in range(4):
        drawn = scenes.scene(split, index)
        assert data.keys[index] == drawn.key == f"{split}/000000{index}"
        assert data.labels[index] == drawn.label
        assert data.class_names[data.labels[index]] in drawn.caption
        assert data.image(index) == drawn.image
        assert np.array_equal(data.mask(index), drawn.mask)


def test_classes_may_be_the_colours_of_the_objects():
    data = by_colour(DemoData("val", 20))
    assert data.class_names == list(scenes.COLOURS)
    assert data.keys == DemoData("val", 20).keys
    for index in range(20):
        assert f" {data.class_names[data.labels[index]]} " in scenes.scene("val", index).caption
    assert by_colour(data).labels == data.labels
    assert data.captions == [[scenes.scene("val", index).caption] for index in range(20)]
    assert data.templates[0].format("red") == "a red sun"
    assert DemoData("val", 20).captions is None
