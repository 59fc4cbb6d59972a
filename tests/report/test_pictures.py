from __future__ import annotations

import numpy as np
from PIL import Image

from patchranking.evaluation.examples import Example
from patchranking.report.pictures import heat_map, kept_view, photo, shown_methods

RED = Image.new("RGB", (48, 48), (250, 0, 0))


def test_photo_has_the_asked_side_and_mode() -> None:
    picture = photo(Image.new("L", (30, 30)), 77)
    assert (picture.size, picture.mode) == ((77, 77), "RGB")


def test_kept_patches_keep_their_colour_and_dropped_ones_lose_it() -> None:
    kept = np.zeros((4, 4), bool)
    kept[1, 2] = True
    pixels = np.asarray(kept_view(RED, kept, 40)).astype(int)
    assert (pixels[10:20, 20:30] == (250, 0, 0)).all()
    dropped = np.ones((40, 40), bool)
    dropped[10:20, 20:30] = False
    assert (np.ptp(pixels[dropped], axis=-1) < 25).all()
    assert pixels[9, 25].max() < 60 < pixels[5, 5].min()


def test_all_and_no_patches_kept_have_no_outline() -> None:
    assert (np.asarray(kept_view(RED, np.ones((3, 3), bool), 40)) == (250, 0, 0)).all()
    assert len(np.unique(np.asarray(kept_view(RED, np.zeros((3, 3), bool), 40)).reshape(-1, 3), axis=0)) == 1


def test_heat_map_is_brighter_where_importance_is_higher() -> None:
    importance = np.array([[0.0, 1e-6], [5.0, 1e6]])
    pixels = np.asarray(heat_map(RED, importance, 40)).astype(int).sum(-1)
    assert pixels[5, 5] < pixels[5, 30] < pixels[30, 5] < pixels[30, 30]
    assert np.ptp(pixels[:20, :20]) == 0


def test_heat_map_counts_ranks_only_and_gives_ties_one_colour() -> None:
    importance = np.random.default_rng(0).normal(size=(3, 5))
    assert heat_map(RED, importance, 60).tobytes() == heat_map(RED, np.exp(3 * importance), 60).tobytes()
    assert len(np.unique(np.asarray(heat_map(RED, np.zeros((2, 2)), 40)).reshape(-1, 3), axis=0)) == 1
    assert heat_map(RED, np.zeros((1, 1)), 40).size == (40, 40)


def test_the_heat_map_lays_magma_over_grey_at_the_mean_place_of_equals() -> None:
    green = Image.new("RGB", (48, 48), (0, 200, 0))
    pixels = np.asarray(heat_map(green, np.array([[0.0, 1.0], [2.0, 2.0]]), 40)).astype(float)
    grey = np.asarray(green.convert("L"))[0, 0]
    anchors = {0: (0, 0, 4), 2: (81, 18, 124), 3: (130, 37, 129), 6: (252, 137, 97), 7: (254, 194, 135)}

    def colour(share):
        below = int(8 * share)
        part = 8 * share - below
        return [
            (1 - part) * a + part * b for a, b in zip(anchors[below], anchors.get(below + 1, (0,) * 3), strict=True)
        ]

    for (y, x), share in (((5, 5), 0), ((5, 35), 1 / 3), ((35, 5), 2.5 / 3), ((35, 35), 2.5 / 3)):
        expected = [0.26 * grey + 0.74 * channel for channel in colour(share)]
        np.testing.assert_allclose(pixels[y, x], expected, atol=1.5)


def test_methods_come_in_the_order_of_the_report() -> None:
    grid = np.zeros((2, 2), int)
    names = ("low-res", "random", "patchranking", "golden", "tome")
    shown = [
        Example(RED, "a", places=dict.fromkeys(names[:3], grid)),
        Example(RED, "b", places=dict.fromkeys(names, grid)),
    ]
    assert shown_methods(shown) == ["patchranking", "tome", "low-res", "random", "golden"]
