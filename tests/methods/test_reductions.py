from __future__ import annotations

import pytest
import torch

from patchranking.methods import BASELINES, baseline_reductions
from patchranking.pruning.attach import attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.pruning.stages import Survivors

SCHEDULE = Schedule({1: 0.75, 3: 0.5})


@torch.inference_mode()
@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"evit"}))
def test_every_baseline_drops_at_every_stage_and_tells_what_stays(tower, name):
    pixels, watch = torch.randn(2, 3, 32, 32), Survivors()
    seen = {}
    with attach_reductions(tower, baseline_reductions(name, tower, SCHEDULE, 0, watch)):
        hooks = [
            block.register_forward_hook(lambda _, inputs, __, number=number: seen.update({number: inputs[0].shape[1]}))
            for number, block in enumerate(tower.blocks)
        ]
        tower(pixels)
    for hook in hooks:
        hook.remove()
    assert list(seen.values()) == [17, 13, 13, 9, 9]
    assert watch.places is not None
    assert [len(set(row)) for row in watch.places.tolist()] == [8, 8]


@torch.inference_mode()
def test_class_attention_looks_again_at_the_second_stage(tower):
    pixels = torch.randn(2, 3, 32, 32)
    with attach_reductions(tower, baseline_reductions("cls-attention", tower, SCHEDULE, 0)):
        found = tower(pixels)
    tokens = tower.embed(pixels, 1)
    for block, count, stop in ((1, 12, 3), (3, 8, None)):
        tokens = gather_tokens(tokens, top_patches(tower.class_attention(tokens, block), count), 1)
        tokens = tower.run(tokens, block, stop)
    assert torch.equal(found, tower.pool(tokens))


@torch.inference_mode()
def test_random_draws_anew_for_every_batch(tower):
    pixels, watch = torch.randn(2, 3, 32, 32), Survivors()
    reductions, places = baseline_reductions("random", tower, SCHEDULE, 0, watch), []
    for _ in range(2):
        with attach_reductions(tower, reductions):
            tower(pixels)
        places.append(watch.places)
    assert not torch.equal(*places)
