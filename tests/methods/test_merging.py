from __future__ import annotations

import pytest
import torch

from patchranking.methods.merging import Matching, merge


@pytest.mark.parametrize("prefix", [0, 2])
def test_patches_merge_to_the_mean_of_all_they_stand_for(prefix):
    tokens, sizes = torch.randn(1, prefix + 5, 3), torch.rand(1, prefix + 5) * 4
    matching = Matching(torch.tensor([[3, 0]]), torch.tensor([[1, 1]]), torch.tensor([[4, 1, 2]]))
    found, total = merge(tokens, sizes, matching, prefix)
    own, weight = tokens[0, prefix:], sizes[0, prefix:]
    together = sum(weight[patch] * own[patch] for patch in (0, 1, 3)) / weight[[0, 1, 3]].sum()
    torch.testing.assert_close(found[0, prefix:], torch.stack([own[4], together, own[2]]))
    torch.testing.assert_close(total[0, prefix:], torch.stack([weight[4], weight[[0, 1, 3]].sum(), weight[2]]))
    torch.testing.assert_close(found[:, :prefix], tokens[:, :prefix])
    assert torch.equal(total[:, :prefix], sizes[:, :prefix])


def test_every_image_has_a_matching_of_its_own():
    tokens, sizes = torch.tensor([[[1.0], [2], [4]], [[1], [2], [4]]]), torch.ones(2, 3)
    matching = Matching(torch.tensor([[0], [2]]), torch.tensor([[1], [0]]), torch.tensor([[1, 2], [0, 1]]))
    found, total = merge(tokens, sizes, matching, 0)
    assert found.flatten(1).tolist() == [[1.5, 4], [2.5, 2]]
    assert total.tolist() == [[2, 1], [2, 1]]
