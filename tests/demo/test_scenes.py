from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from patchranking.demo.scenes import _GLYPHS, BACKGROUNDS, CLASSES, COLOURS, SIZE, SPLITS, caption, scene
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
    grey = np.asarray(plain.image.convert("L"), float)
    around = [np.roll(grey, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    edges = (9 * grey - sum(around)).clip(0, 255)
    expected = 0.4 * before + 0.6 * (255 - edges[..., None])
    assert np.abs(after - expected)[1:-1, 1:-1].max() <= 1
    assert np.array_equal(sketch.mask, plain.mask)
    with pytest.raises(UserError, match="train-sketch"):
        scene("holiday-sketch", 0)


def test_captions_name_colour_object_and_background():
    for index in range(40):
        drawn = scene("val", index)
        article, colour, rest = drawn.caption.split(" ", 2)
        name, _, background = rest.partition(" on a ")
        assert article == ("an" if colour == "orange" else "a")
        assert (name, colour in COLOURS) == (CLASSES[drawn.label], True)
        assert background.removesuffix(" background") in BACKGROUNDS
        assert drawn.key == f"val/{index:07d}"
        assert drawn.caption == caption("val", index)


def test_every_class_is_drawn_whole_and_the_mask_shows_where():
    assert len(CLASSES) >= 60
    seen = {}
    for index in range(300):
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


def test_what_makes_a_scene_untypical_is_known():
    scenes = [scene("train", index) for index in range(60)]
    assert {one.clutter for one in scenes} == {3, 4, 5, 6, 7}
    assert -10 < min(one.rotation for one in scenes) < -7
    assert 7 < max(one.rotation for one in scenes) < 10
    for one in scenes:
        rows, columns = (np.flatnonzero(one.mask.any(axis)) for axis in (1, 0))
        longer = max(np.ptp(rows), np.ptp(columns)) + 1
        assert abs(longer - one.extent) <= 3, one.key


def test_an_unknown_split_is_named():
    with pytest.raises(UserError, match="train, val, test"):
        scene("tset", 0)


def test_objects_have_the_colour_that_the_caption_names():
    for index in range(40):
        drawn = scene("val", index)
        ink = np.median(np.asarray(drawn.image, float)[drawn.mask], axis=0)
        named = np.array(COLOURS[drawn.caption.split()[1]])
        assert (np.abs(ink - named) < 16 + 0.15 * named).all()


@pytest.mark.parametrize(
    ("split", "index", "label", "caption", "centre", "share", "greys"),
    [
        ("train", 0, 57, "a pink check mark on a wavy background", (56, 42), 0.128, "40 39 38 47 95 37 56 72 31"),
        ("val", 7, 52, "a teal envelope on a wavy background", (37, 56), 0.230, "207 184 182 193 156 172 217 217 217"),
        (
            "test",
            123,
            50,
            "a purple pair of scissors on a checkered background",
            (42, 52),
            0.124,
            "216 216 208 198 148 179 206 221 222",
        ),
    ],
)
def test_scenes_never_change(split, index, label, caption, centre, share, greys):
    """The demo model was trained on exactly these scenes, and published numbers are on them."""
    drawn = scene(split, index)
    assert (drawn.label, drawn.caption) == (label, caption)
    assert np.argwhere(drawn.mask).mean(0) == pytest.approx(centre, abs=1)
    assert drawn.mask.mean() == pytest.approx(share, abs=0.005)
    ninths = drawn.image.convert("L").resize((3, 3), Image.Resampling.BOX)
    assert np.asarray(ninths, int).flatten() == pytest.approx([*map(int, greys.split())], abs=3)


def test_every_class_has_a_sign_of_its_own_which_unicode_names_alike():
    signs = {name: unicodedata.name(chr(code)).lower() for name, code in _GLYPHS.items()}
    assert len({*signs.values()}) == len(CLASSES)
    alike = [name for name in CLASSES if name.split()[-1] in signs[name]]
    assert len(alike) > 40
    assert {"heart", "diamond", "anchor", "umbrella", "chess king"} <= {*alike}
