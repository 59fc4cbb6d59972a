from __future__ import annotations

import torch

from patchranking.methods.cls_attention import ClsAttention


def test_it_reads_the_attention_of_the_block_that_comes_next(tower):
    tokens = tower.embed(torch.randn(2, 3, 32, 32), 3)
    scores = ClsAttention().scorer(tower, 3, 0)(tokens)
    assert torch.equal(scores, tower.class_attention(tokens, 3))
    assert not torch.equal(scores, tower.class_attention(tokens, 2))
