from __future__ import annotations

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
