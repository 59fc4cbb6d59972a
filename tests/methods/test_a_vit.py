from __future__ import annotations

import math

import pytest
import torch

from patchranking.methods.a_vit import AViT, a_vit, halting
from patchranking.methods.batch import Batch
from patchranking.pruning.schedule import Schedule


def test_halting_is_the_sigmoid_of_the_first_channel():
    tokens = torch.tensor([[[2.0, 9.0], [3.0, -9.0], [0.0, 1.0]]])
    expected = [1 / (1 + math.exp(-(5 * channel - 10))) for channel in (2.0, 3.0, 0.0)]
    assert halting(tokens)[0].tolist() == pytest.approx(expected)


@torch.inference_mode()
def test_it_equals_halting_token_by_token(tower):
    torch.manual_seed(3)
    pixels = 5 * torch.randn(3, 3, 32, 32)
    schedule = Schedule({1: 0.75, 3: 0.5})
    expected, stayed = [], []
    for picture in pixels:
        tokens, alive, total = tower.embed(picture[None]), list(range(16)), dict.fromkeys(range(16), 0.0)
        for block in range(tower.depth):
            if block in (1, 3):
                stays = sorted(alive, key=lambda patch: total[patch])[: {1: 12, 3: 8}[block]]
                places = [0, *(1 + alive.index(patch) for patch in sorted(stays))]
                tokens, alive = tokens[:, places], sorted(stays)
            tokens = tower.run(tokens, block, block + 1)
            for place, patch in enumerate(alive):
                total[patch] += 1 / (1 + math.exp(-(5 * tokens[0, 1 + place, 0].item() - 10)))
        expected.append(tower.pool(tokens)[0])
        stayed.append(alive)
    found = a_vit(tower, tower.embed(pixels), schedule)
    torch.testing.assert_close(found.features, torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert found.keep_indices.tolist() == stayed


@torch.inference_mode()
def test_all_patches_give_the_dense_feature(case):
    found = a_vit(case.tower, case.tower.embed(case.pixels), Schedule({2: 1.0}))
    assert torch.equal(found.features, case.tower(case.pixels))
    assert found.keep_indices.tolist() == [list(range(case.tower.num_patches))] * 3


@torch.inference_mode()
def test_the_method_halts_from_the_first_block_on_at_the_counts_of_the_schedule(tower):
    pixels, schedule = torch.randn(2, 3, 32, 32), Schedule({1: 0.75, 3: 0.5})
    encoding = AViT().at(tower, schedule, 0)
    found, expected = encoding.run(Batch(tower, pixels)), a_vit(tower, tower.embed(pixels), schedule)
    assert encoding.schedule == schedule
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.keep_indices, expected.keep_indices)
