from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchranking.pruning.merge import Matching, merge, nearest


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


@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 2), st.integers(0, 99))
def test_matching_and_merging_shares_equal_a_loop_over_the_images(staying, going, prefix, seed):
    generator = torch.Generator().manual_seed(seed)
    patches = staying + going

    def draw(*shape):
        return torch.rand(2, *shape, generator=generator) - 0.5

    metric, tokens = draw(patches, 3), draw(prefix + patches, 4)
    sizes, shares = 1.5 + draw(prefix + patches), 0.5 + draw(going)
    stays = torch.stack([torch.randperm(patches, generator=generator)[:staying] for _ in range(2)])
    matching, cosines = nearest(metric, stays)
    found, total = merge(tokens, sizes, matching, prefix, shares)
    assert torch.equal(matching.stays, stays)
    for image in range(2):
        left = stays[image].tolist()
        gone = [patch for patch in range(patches) if patch not in left]
        assert matching.sources[image].tolist() == gone
        weight = dict(enumerate(sizes[image, prefix:]))
        sums = {patch: weight[patch] * tokens[image, prefix + patch] for patch in left}
        for number, patch in enumerate(gone):
            alike = [torch.cosine_similarity(metric[image, patch], metric[image, other], dim=0) for other in left]
            best = max(range(staying), key=lambda at, alike=alike: alike[at].item())
            torch.testing.assert_close(cosines[image, number], alike[best])
            assert matching.targets[image, number] == left[best]
            share = shares[image, number] * sizes[image, prefix + patch]
            sums[left[best]] = sums[left[best]] + share * tokens[image, prefix + patch]
            weight[left[best]] = weight[left[best]] + share
        expected = torch.stack([sums[patch] / weight[patch] for patch in left])
        torch.testing.assert_close(found[image, prefix:], expected)
        torch.testing.assert_close(total[image, prefix:], torch.stack([weight[patch] for patch in left]))
    torch.testing.assert_close(found[:, :prefix], tokens[:, :prefix])
    assert torch.equal(total[:, :prefix], sizes[:, :prefix])
