from __future__ import annotations

import time

import pytest
import torch

from patchranking.pretrain.compression import Compression
from patchranking.pretrain.cost import forward_share, measured_seconds


def literal(tokens, width=32, depth=2, pixels=3 * 32 * 32):
    """Multiply-accumulates of the patch embedding and of the blocks: 12 L D^2 + 2 L^2 D each."""
    return pixels * width + depth * (12 * tokens * width**2 + 2 * tokens**2 * width)


@pytest.mark.parametrize(("size", "drop", "tokens"), [(4, 0, 65), (4, 0.5, 33), (8, 0, 17), (8, 0.75, 5), (32, 0.9, 2)])
def test_the_share_is_the_formula(vit_tower, size, drop, tokens):
    assert forward_share(vit_tower, Compression(size, drop)) == pytest.approx(literal(tokens) / literal(65))


def test_times_are_medians_of_each_step():
    calls = []
    found = measured_seconds(
        [lambda: calls.append("a"), lambda: (calls.append("b"), time.sleep(0.005))], torch.device("cpu"), repeats=3
    )
    assert calls == ["a", "b"] * 4
    assert found[0] < found[1]
