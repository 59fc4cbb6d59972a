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


def test_methods_come_in_the_order_of_the_report() -> None:
    grid = np.zeros((2, 2), int)
    shown = [Example(RED, "a", places={"random": grid}), Example(RED, "b", places={"patchranking": grid})]
    assert shown_methods(shown) == ["patchranking", "random"]
