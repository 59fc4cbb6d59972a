from __future__ import annotations

import pytest
import torch

from patchranking.pruning.attach import attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.pruning.stages import by_scores


def first_channel(tower):
    return lambda tokens: tokens[:, tower.num_prefix_tokens :, 0]


def attached(tower, schedule):
    return attach_reductions(tower, by_scores(tower, schedule, {schedule.block: first_channel(tower)}))


@torch.inference_mode()
def test_keep_all_and_detached_are_bit_identical_and_keys_stay(case):
    tower = case.tower
    dense = case.encode(case.pixels)
    keys = list(case.model.state_dict())
    with attached(tower, Schedule({3: 1.0})):
        assert torch.equal(case.encode(case.pixels), dense)
        assert list(case.model.state_dict()) == keys
    with attached(tower, Schedule({3: 0.5})):
        assert not torch.equal(case.encode(case.pixels), dense)
        assert list(case.model.state_dict()) == keys
    assert torch.equal(case.encode(case.pixels), dense)
    assert list(case.model.state_dict()) == keys


@torch.inference_mode()
@pytest.mark.parametrize("block", [0, 3, 4])
def test_the_hook_equals_gathering_by_hand(case, block):
    tower, rate = case.tower, 0.5
    tokens = tower.embed(case.pixels, block)
    chosen = top_patches(first_channel(tower)(tokens), round(rate * tower.num_patches))
    expected = tower.pool(tower.run(gather_tokens(tokens, chosen, tower.num_prefix_tokens), block))
    with attached(tower, Schedule({block: rate})):
        assert torch.equal(case.encode(case.pixels), expected)

    """Pruning in the last block equals masking the attention to the dropped patches, for a class-token readout."""
    tower, block = case.tower, case.tower.depth - 1
    tokens = tower.embed(case.pixels, block)
    chosen = torch.tensor([[1, 4, 7]]).expand(len(tokens), -1)
    kept = tower.run(gather_tokens(tokens, chosen, tower.num_prefix_tokens), block)
    duplicated = torch.cat(
        [tokens[:, : tower.num_prefix_tokens], tokens[:, tower.num_prefix_tokens :][:, [7, 1, 4]]], 1
    )
    again = tower.run(duplicated, block)
    torch.testing.assert_close(tower.pool(kept), tower.pool(again), rtol=0, atol=1e-5)


def test_the_hook_survives_autocast_and_training_mode(tower):
    tower.module.train()
    with attached(tower, Schedule({3: 0.5})), torch.autocast("cpu", torch.bfloat16):
        assert tower(torch.randn(2, 3, 32, 32)).shape == (2, 24)
