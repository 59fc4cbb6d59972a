from __future__ import annotations

import pytest
import torch

from patchranking.methods.centre_crop import CentreCrop
from patchranking.pruning.select import top_patches


def test_what_stays_is_the_middle_of_the_picture(case):
    tower = case.tower
    rows, columns = tower.grid
    tokens = torch.randn(2, tower.num_prefix_tokens + tower.num_patches, tower.width)
    scores = CentreCrop().scorer(tower, 3, 0)(tokens)
    assert scores.shape == (2, tower.num_patches)
    assert torch.equal(scores[0], scores[1])
    kept = torch.zeros(tower.num_patches, dtype=torch.bool)
    kept[top_patches(scores[:1], (rows - 2) * (columns - 2))[0]] = True
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected[1:-1, 1:-1] = True
    assert torch.equal(kept.view(rows, columns), expected)


@pytest.mark.parametrize("grid", [(4, 4), (3, 4), (5, 5), (3, 9)])
def test_it_goes_by_the_larger_distance_from_the_middle_and_then_by_the_smaller(tower, grid):
    tower.grid = grid
    scores = CentreCrop().scorer(tower, 3, 0)(torch.zeros(1, 1 + grid[0] * grid[1], 32))[0]

    def distances(patch):
        row, column = divmod(patch, grid[1])
        return sorted((abs(row + 0.5 - grid[0] / 2) / grid[0], abs(column + 0.5 - grid[1] / 2) / grid[1]), reverse=True)

    patches = range(grid[0] * grid[1])
    rounded = [[round(distance, 6) for distance in distances(patch)] for patch in patches]
    for one in patches:
        for other in patches:
            if rounded[one] != rounded[other]:
                assert (scores[one] > scores[other]).item() is (rounded[one] < rounded[other])
            else:
                assert abs(scores[one] - scores[other]) < 1e-6


def test_a_quarter_of_four_by_four_is_the_middle_and_corners_go_first(tower):
    scores = CentreCrop().scorer(tower, 3, 0)(torch.zeros(1, 17, 32))[0]
    assert sorted(scores.argsort(descending=True)[:4].tolist()) == [5, 6, 9, 10]
    assert sorted(scores.argsort()[:4].tolist()) == [0, 3, 12, 15]
