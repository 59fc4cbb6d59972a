from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.pruning.select import gather_tokens
from patchranking.ranking.iterative import iterative
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.ranking import places


@torch.inference_mode()
def brute_force(tower, pixels, block, group):
    """One image and one round at a time."""
    tokens = tower.embed(pixels[None], block)
    full = tower.pool(tower.run(tokens, block))
    alive, order = list(range(tower.num_patches)), []
    while len(alive) > 1:
        others = torch.tensor([[i for i in alive if i != patch] for patch in alive])
        kept = gather_tokens(tokens.expand(len(alive), -1, -1), others, tower.num_prefix_tokens)
        features = tower.pool(tower.run(kept, block, positions=others)).double()
        damage = dict(zip(alive, (1 - torch.cosine_similarity(features, full.double(), dim=1)).tolist(), strict=True))
        gone = sorted(alive, key=damage.__getitem__)[:group]
        order += gone
        alive = [patch for patch in alive if patch not in gone]
    return order + alive


@pytest.mark.parametrize("group", [1, 3])
def test_equals_brute_force(case, group):
    found = iterative(case.tower, case.pixels, block=2, group=group).removal_order.tolist()
    same = 0
    for row, pixels in zip(found, case.pixels, strict=True):
        assert sorted(row) == list(range(case.tower.num_patches))
        same += row == brute_force(case.tower, pixels, 2, group)
    assert same >= 2, "rounding may swap two near-equal patches in one of three images, not in more"


def test_all_in_one_round_is_leave_out_with_single_patches(tower):
    pixels = torch.randn(3, 3, 32, 32)
    one_round = iterative(tower, pixels, group=tower.num_patches)
    assert torch.equal(one_round.removal_order, leave_out(tower, pixels, window=1).removal_order)


def test_importance_is_the_place_in_the_order(tower):
    ranking = iterative(tower, torch.randn(2, 3, 32, 32), group=5)
    assert torch.equal(ranking.importance, places(ranking.removal_order))
    ordered = ranking.importance.gather(1, ranking.removal_order)
    torch.testing.assert_close(ordered, ((torch.arange(16) + 0.5) / 16).expand(2, -1))


def test_a_group_of_none_is_refused(tower):
    with pytest.raises(UserError, match="at least 1 patch a round, not 0"):
        iterative(tower, torch.randn(1, 3, 32, 32), group=0)
