from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchranking.demo.scenes import BACKGROUNDS, CLASSES, COLOURS, SIZE, SPLITS, scene
from patchranking.errors import UserError


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SPLITS), st.integers(0, 10**9))
def test_a_scene_is_a_function_of_split_and_index(split, index):
    first, again = scene(split, index), scene(split, index)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.key, first.label, first.caption) == (again.key, again.label, again.caption)
    assert np.array_equal(first.mask, again.mask)
    assert first.image.size == (SIZE, SIZE)
    assert first.image.mode == "RGB"


def test_splits_and_indices_differ():
    pictures = {scene(split, index).image.tobytes() for split in SPLITS for index in range(5)}
    assert len(pictures) == 15


def test_a_sketch_shows_the_same_scene_as_outlines():
    plain, sketch = scene("test", 4), scene("test-sketch", 4)
    assert (sketch.key, sketch.label, sketch.caption) == ("test-sketch/0000004", plain.label, plain.caption)
    before, after = (np.asarray(image, float) for image in (plain.image, sketch.image))
    assert sketch.image.mode == "RGB"
    assert np.ptp(after, axis=2).mean() < 0.5 * np.ptp(before, axis=2).mean()
    assert np.median(after) > np.median(before) + 20
    with pytest.raises(UserError, match="train-sketch"):
        scene("holiday-sketch", 0)


def test_captions_name_colour_object_and_background():
    for index in range(40):
        drawn = scene("val", index)
        assert CLASSES[drawn.label] in drawn.caption
        assert any(f" {colour} " in f" {drawn.caption} " for colour in COLOURS)
        assert any(f"on a {texture} background" in drawn.caption for texture in BACKGROUNDS)
        assert drawn.caption.startswith(("a ", "an "))


def test_every_class_is_drawn_whole_and_the_mask_shows_where():
    assert len(CLASSES) >= 60
    seen = {}
    for index in range(900):
        drawn = scene("train", index)
        seen.setdefault(drawn.label, drawn)
        area = drawn.mask.mean()
        assert 0.005 < area < 0.6
        assert drawn.mask[1:-1, 1:-1].sum() == drawn.mask.sum()
    assert len(seen) == len(CLASSES)
    for drawn in seen.values():
        picture = np.asarray(drawn.image, float)
        inside, outside = picture[drawn.mask], picture[~drawn.mask]
        assert np.abs(inside.mean(0) - outside.mean(0)).sum() > 10


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match="train, val, test"):
        scene("tset", 0)
