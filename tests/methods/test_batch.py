from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from patchranking.methods import METHODS, Dense
from patchranking.methods.batch import Batch
from patchranking.pruning.schedule import Schedule


@contextmanager
def calls(tower):
    """Numbers of the blocks that run, one by one, by their MLP."""
    found = []
    hooks = [
        block.layer_norm2.register_forward_hook(lambda *_, number=number: found.append(number))
        for number, block in enumerate(tower.blocks)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def test_features_are_the_librarys_own_bit_for_bit_from_wherever_they_start(case):
    tower, expected = case.tower, case.encode(case.pixels)
    for blocks in ([], [0], [3], [2, 4], [4, 1], [tower.depth]):
        batch = Batch(tower, case.pixels)
        for block in blocks:
            assert torch.equal(batch.entering(block), tower.embed(case.pixels, block))
        assert torch.equal(batch.features, expected)


@torch.inference_mode()
def test_no_block_runs_twice_on_the_dense_tokens(tower):
    batch = Batch(tower, torch.randn(2, 3, 32, 32))
    with calls(tower) as found:
        for block, more in ((0, []), (2, [0, 1]), (2, []), (3, [2]), (0, [])):
            batch.entering(block)
            assert found == more
            found.clear()
        for more in ([3, 4], []):
            assert batch.features.shape == (2, 24)
            assert found == more
            found.clear()


@torch.inference_mode()
def test_methods_at_one_stage_share_the_blocks_before_it(tower):
    batch, schedule = Batch(tower, torch.randn(2, 3, 32, 32)), Schedule({2: 0.5})
    methods = [*(METHODS[name] for name in ("random", "cls-attention", "evit", "centre-crop")), Dense()]
    with calls(tower) as found:
        for method in methods:
            method.at(tower, schedule, 0).run(batch)
    assert [found.count(block) for block in range(tower.depth)] == [1, 1, 5, 5, 5]


@torch.inference_mode()
def test_rows_share_what_the_whole_batch_has_computed(tower):
    pixels = torch.randn(4, 3, 32, 32)
    batch = Batch(tower, pixels, [9, 7, 8, 5])
    some = batch.rows([3, 1])
    assert some.images == [5, 7]
    assert torch.equal(some.pixels, pixels[[3, 1]])
    with calls(tower) as found:
        assert torch.equal(some.entering(2), tower.embed(pixels, 2)[[3, 1]])
        assert torch.equal(batch.entering(2), tower.embed(pixels, 2))
        assert found == [0, 1] * 3  # once here, and in the two that are compared with
        found.clear()
        assert torch.equal(some.features, batch.features[[3, 1]])
        assert found == [2, 3, 4]
        assert torch.equal(some.rows([1]).features, batch.features[[1]])
        assert found == [2, 3, 4]


def test_the_same_rows_are_the_same_batch_and_all_rows_are_the_whole(tower):
    batch = Batch(tower, torch.randn(3, 3, 32, 32), range(3))
    assert batch.rows([0, 1, 2]) is batch
    assert batch.rows([0, 2]) is batch.rows([0, 2])
    assert batch.rows([0, 2]) is not batch.rows([0, 1])
    assert batch.rows([0, 2]).rows([0, 1]) is batch.rows([0, 2])


@pytest.mark.parametrize("value", [3, None, False])
def test_what_is_asked_for_once_is_computed_once_for_a_key(tower, value):
    batch, found = Batch(tower, torch.randn(3, 3, 32, 32), range(3)), []

    def compute():
        found.append(1)
        return value

    assert [batch.once(("a", 1), compute) for _ in range(3)] == [value] * 3
    assert len(found) == 1
    assert batch.once(("a", 2), compute) is value
    assert batch.rows([0]).once(("a", 1), compute) is value
    assert len(found) == 3
