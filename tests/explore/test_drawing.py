from __future__ import annotations

import numpy as np
from PIL import Image

from patchranking.explore.drawing import merged_view, small_view


def test_patches_of_one_token_get_their_mean_colour_and_others_stay():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:20, :20], picture[:20, 20:], picture[20:] = (200, 0, 0), (0, 100, 0), (0, 0, 90)
    view = np.asarray(merged_view(Image.fromarray(picture), np.array([[5, 5], [7, 9]]), 40))
    assert np.abs(view[5, 5] - np.array([0.8 * 100 + 0.2 * 200, 0.8 * 50, 0])).max() <= 1
    assert np.abs(view[5, 30] - np.array([0.8 * 100, 0.8 * 50 + 0.2 * 100, 0])).max() <= 1
    assert view[30, 5].tolist() == view[30, 30].tolist() == [0, 0, 90]
    white = (view == 255).all(-1)
    assert white[20].all()  # below the group
    assert not white[:20].any()  # none inside it
    assert not white[21:].any()  # none between patches that go on by themselves


def test_a_smaller_picture_has_the_lines_of_its_patches():
    view = np.asarray(small_view(Image.new("RGB", (32, 32)), (2, 4), 8, 40)).mean(-1)
    assert np.flatnonzero(view[5] > 0).tolist() == [10, 20, 30]
    assert np.flatnonzero(view[:, 5] > 0).tolist() == [20]
