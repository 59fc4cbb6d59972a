from __future__ import annotations

import torch

from patchranking.methods.evit import EViT, fuse
from patchranking.pruning.schedule import Schedule


def test_fuse_equals_the_loop_over_patches():
    tokens, attention = torch.randn(3, 2 + 7, 5), torch.rand(3, 7)
    found = fuse(tokens, attention, 3, 2)
    for row in range(3):
        best = sorted(sorted(range(7), key=lambda p, row=row: -attention[row, p].item())[:3])
        fused = torch.zeros(5)
        for patch in set(range(7)) - set(best):
            fused += attention[row, patch] * tokens[row, 2 + patch]
        expected = [tokens[row, 0], tokens[row, 1], *(tokens[row, 2 + patch] for patch in best), fused]
        torch.testing.assert_close(found[row], torch.stack(expected))


@torch.inference_mode()
def test_it_reads_the_attention_of_its_block(tower):
    pixels = torch.randn(2, 3, 32, 32)
    tokens = tower.embed(pixels, 3)
    expected = tower.pool(tower.run(fuse(tokens, tower.class_attention(tokens, 3), 6, 1), 3))
    assert torch.equal(EViT().at(tower, Schedule({3: 6 / 16}), 0)(pixels), expected)


@torch.inference_mode()
def test_every_stage_looks_again_and_fuses_what_it_drops_the_older_fused_token_among_it(tower):
    pixels, schedule = torch.randn(2, 3, 32, 32), Schedule({1: 12 / 16, 3: 5 / 16})
    tokens = tower.embed(pixels, 1)
    tokens = tower.run(fuse(tokens, tower.class_attention(tokens, 1), 12, 1), 1, 3)
    assert tokens.shape[1] == 1 + 12 + 1
    tokens = tower.run(fuse(tokens, tower.class_attention(tokens, 3), 5, 1), 3)
    assert tokens.shape[1] == 1 + 5 + 1
    found = EViT().at(tower, schedule, 0)
    assert found.schedule == schedule
    assert torch.equal(found(pixels), tower.pool(tokens))
