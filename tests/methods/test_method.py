from __future__ import annotations

import pytest
import torch

from patchranking.methods import METHODS
from patchranking.methods.batch import Batch
from patchranking.methods.method import Dropping
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches

SCHEDULE = Schedule({1: 0.75, 3: 0.5})
DROPPING = sorted(name for name, method in METHODS.items() if isinstance(method, Dropping))


@torch.inference_mode()
@pytest.mark.parametrize("name", DROPPING)
def test_every_baseline_drops_at_every_stage_and_tells_what_stays(tower, name):
    batch, seen = Batch(tower, torch.randn(2, 3, 32, 32)), {}
    hooks = [
        block.register_forward_hook(lambda _, inputs, __, number=number: seen.update({number: inputs[0].shape[1]}))
        for number, block in enumerate(tower.blocks)
    ]
    found = METHODS[name].at(tower, SCHEDULE, 0).run(batch)
    for hook in hooks:
        hook.remove()
    assert list(seen.values()) == [17, 13, 13, 9, 9]
    assert found.keep_indices is not None
    assert [len(set(row)) for row in found.keep_indices.tolist()] == [8, 8]


@torch.inference_mode()
def test_class_attention_looks_again_at_the_second_stage(tower):
    pixels = torch.randn(2, 3, 32, 32)
    found = METHODS["cls-attention"].at(tower, SCHEDULE, 0)(pixels)
    tokens = tower.embed(pixels, 1)
    for block, count, stop in ((1, 12, 3), (3, 8, None)):
        tokens = gather_tokens(tokens, top_patches(tower.class_attention(tokens, block), count), 1)
        tokens = tower.run(tokens, block, stop)
    assert torch.equal(found, tower.pool(tokens))


@torch.inference_mode()
def test_random_draws_anew_for_every_batch(tower):
    pixels, encoding = torch.randn(2, 3, 32, 32), METHODS["random"].at(tower, SCHEDULE, 0)
    first, second = (encoding.run(Batch(tower, pixels)).keep_indices for _ in range(2))
    assert not torch.equal(first, second)
