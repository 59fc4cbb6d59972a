from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from patchranking.errors import MissingExtraError
from patchranking.evaluation.examples import Example, View
from patchranking.report.pictures import examples_picture, heat_map, kept_view, photo, shown_methods

RED = Image.new("RGB", (48, 48), (250, 0, 0))


def test_photo_has_the_asked_side_and_mode() -> None:
    picture = photo(Image.new("L", (30, 30)), 77)
    assert (picture.size, picture.mode) == ((77, 77), "RGB")
    square = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8))
    assert photo(square, 20) == square
    assert photo(Image.new("RGB", (30, 30), (1, 2, 3))).size == (168, 168)


def test_kept_patches_keep_their_colour_and_dropped_ones_lose_it() -> None:
    kept = np.zeros((4, 4), bool)
    kept[1, 2] = True
    pixels = np.asarray(kept_view(RED, kept, 40)).astype(int)
    assert (pixels[10:20, 20:30] == (250, 0, 0)).all()
    dropped = np.ones((40, 40), bool)
    dropped[10:20, 20:30] = False
    grey = RED.convert("L").getpixel((0, 0))
    ghost = [round(0.14 * grey + 0.86 * pale) for pale in (203, 207, 216)]
    outline = np.zeros((40, 40), bool)
    outline[[9, 20], 20:30] = outline[10:20, [19, 30]] = True
    assert (pixels[outline] == (38, 42, 54)).all()
    assert (pixels[dropped & ~outline] == ghost).all()


def test_all_and_no_patches_kept_have_no_outline() -> None:
    assert (np.asarray(kept_view(RED, np.ones((3, 3), bool), 40)) == (250, 0, 0)).all()
    assert len(np.unique(np.asarray(kept_view(RED, np.zeros((3, 3), bool), 40)).reshape(-1, 3), axis=0)) == 1


def test_heat_map_is_brighter_where_importance_is_higher() -> None:
    importance = np.array([[0.0, 1e-6], [5.0, 1e6]])
    pixels = np.asarray(heat_map(RED, importance, 40)).astype(int).sum(-1)
    assert pixels[5, 5] < pixels[5, 30] < pixels[30, 5] < pixels[30, 30]
    assert np.ptp(pixels[:20, :20]) == 0


def test_heat_map_runs_from_black_to_pale_yellow_over_the_grey_image() -> None:
    grey = RED.convert("L").getpixel((0, 0))
    drawn = heat_map(RED, np.array([[2.0, 0.0], [1.0, 9.0], [8.0, 7.0], [6.0, 5.0], [4.0, 4.0]]), 40)
    magma = {1: (0, 0, 4), 8: (254, 194, 135), 3: (252, 253, 191)}
    for patch, colour in magma.items():
        x, y = 10 + 20 * (patch % 2), 4 + 8 * (patch // 2)
        share = {1: 0, 8: 3.5 / 9, 3: 1}[patch]
        if patch == 8:  # the two of importance 4 share the places 3 and 4, between the anchors 3 and 4 of 0 to 8
            low, high = np.array((130, 37, 129)), np.array((183, 55, 121))
            colour = tuple((low + (high - low) * (8 * share - 3)).round())
        expected = [0.26 * grey + 0.74 * channel for channel in colour]
        assert drawn.getpixel((x, y)) == pytest.approx(expected, abs=1)
    assert drawn.getpixel((10, 36)) == drawn.getpixel((30, 36))


def test_heat_map_counts_ranks_only_and_gives_ties_one_colour() -> None:
    importance = np.random.default_rng(0).normal(size=(3, 5))
    assert heat_map(RED, importance, 60).tobytes() == heat_map(RED, np.exp(3 * importance), 60).tobytes()
    assert len(np.unique(np.asarray(heat_map(RED, np.zeros((2, 2)), 40)).reshape(-1, 3), axis=0)) == 1
    assert heat_map(RED, np.zeros((1, 1)), 40).size == (40, 40)


def test_methods_come_in_the_order_of_the_report() -> None:
    view = {0.5: View(np.zeros((2, 2), int), 1)}
    shown = [Example(RED, "a", views={"random": view}), Example(RED, "b", views={"patchranking": view})]
    assert shown_methods(shown) == ["patchranking", "random"]


def test_the_picture_has_a_row_an_image_and_a_column_a_view() -> None:
    views = {"random": {0.5: View(1 - np.arange(16).reshape(4, 4) // 8, 1)}}
    red = Image.new("RGB", (32, 32), (250, 0, 0))
    shown = [Example(red, "with", np.arange(16.0).reshape(4, 4), views), Example(red, "without")]
    picture = examples_picture(shown, [0.5], side=42)
    assert picture.size == (3 * (42 + 4) + 4, 10 + 2 * (42 + 4))
    assert picture.getpixel((6, 12)) == (250, 0, 0)
    assert picture.getpixel((4 + 2 * 46 + 2, 12)) == (250, 0, 0)
    assert picture.getpixel((4 + 46 + 2, 10 + 46 + 2)) == (255, 255, 255)
    assert examples_picture(shown, [], side=42).width == 2 * 46 + 4


def test_examples_picture_shows_every_method_at_every_rate_in_order() -> None:
    noise = np.random.default_rng(0)
    image = Image.fromarray(noise.integers(0, 255, (42, 42, 3), np.uint8))
    importance = noise.normal(size=(4, 4))
    places = {name: noise.permutation(16).reshape(4, 4) for name in ("random", "patchranking")}
    views = {
        name: {rate: View((order < 16 * rate).astype(int), 1) for rate in (0.75, 0.25)}
        for name, order in places.items()
    }
    item = Example(image, "a", importance, views)
    picture = examples_picture([Example(image, "b"), item], [0.75, 0.25], side=42)
    drawn = [image, heat_map(image, importance, 42)]
    drawn += [kept_view(image, places[name] < kept, 42) for name in ("patchranking", "random") for kept in (12, 4)]
    for column, view in enumerate(drawn):
        left, top = 4 + 46 * column, 10 + 46
        assert picture.crop((left, top, left + 42, top + 42)) == view
    assert picture.width == 4 + 46 * len(drawn)


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"patchranking\[report\]"):
        examples_picture([])
