from __future__ import annotations

import pytest
import torch

from patchranking.evaluation.cost import count_macs
from patchranking.methods.evit import EViT, fuse
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule


def test_fuse_equals_the_loop_over_patches():
    tokens, attention = torch.randn(3, 2 + 7, 5), torch.rand(3, 7)
    found, places = fuse(tokens, attention, 3, 2)
    for row in range(3):
        best = sorted(sorted(range(7), key=lambda p, row=row: -attention[row, p].item())[:3])
        fused = torch.zeros(5)
        for patch in set(range(7)) - set(best):
            fused += attention[row, patch] * tokens[row, 2 + patch]
        expected = [tokens[row, 0], tokens[row, 1], *(tokens[row, 2 + patch] for patch in best), fused]
        torch.testing.assert_close(found[row], torch.stack(expected))
        most = max(set(range(7)) - set(best), key=lambda p, row=row: attention[row, p].item())
        assert places[row].tolist() == [*best, most]


def literal_evit(tower, tokens, counts):
    """EViT on one image ``(tokens, width)`` of a transformers tower: attention, choice, MLP (Figure 2)."""
    for block, layer in enumerate(tower.blocks):
        attention, normed, width = layer.self_attn, layer.layer_norm1(tokens), tokens.shape[1]
        mixed, seen = [], torch.zeros(len(tokens))
        for head in torch.arange(width).chunk(tower.num_heads):
            query, key, value = (p(normed)[:, head] for p in (attention.q_proj, attention.k_proj, attention.v_proj))
            weights = (query @ key.T / len(head) ** 0.5).softmax(1)
            mixed.append(weights @ value)
            seen += weights[0] / tower.num_heads
        tokens = tokens + attention.out_proj(torch.cat(mixed, 1))
        if block in counts:
            order = sorted(range(1, len(tokens)), key=lambda token, seen=seen: -seen[token].item())
            kept, gone = sorted(order[: counts[block]]), order[counts[block] :]
            fused = sum(seen[token] * tokens[token] for token in gone)
            tokens = torch.stack([tokens[0], *(tokens[token] for token in kept), fused])
        tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
    return tower.pool(tokens[None])[0]


@torch.inference_mode()
@pytest.mark.parametrize("stages", [{3: 6 / 16}, {0: 12 / 16, 2: 7 / 16, 4: 3 / 16}])
def test_it_equals_the_papers_algorithm_image_by_image(tower, stages):
    """Every stage looks again and fuses what it drops, the older fused token among it."""
    pixels, schedule = torch.randn(3, 3, 32, 32), Schedule(stages)
    encoding = EViT().at(tower, schedule, 0)
    assert encoding.schedule == schedule
    assert encoding.inside
    for feature, tokens in zip(encoding(pixels), tower.embed(pixels), strict=True):
        expected = literal_evit(tower, tokens, schedule.kept(16))
        torch.testing.assert_close(feature, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_nothing_dropped_is_the_dense_model(case):
    if case.tower.has_class_token:
        found = EViT().at(case.tower, Schedule({2: 1.0}), 0)(case.pixels)
        torch.testing.assert_close(found, case.tower(case.pixels), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_nothing_is_computed_twice(tower):
    """The counted MACs are those of the formula, of one row of attention and of a fused token in three MLPs."""
    schedule = Schedule({2: 0.5})
    found = count_macs(EViT().at(tower, schedule, 0), torch.randn(2, 3, 32, 32))
    row, fusing = 17 * 32, 16 * 32
    kept, width, mlp = 9, 32, 64
    one_token_more = 3 * 2 * width * mlp + 2 * (4 * width**2 + 2 * ((kept + 1) ** 2 - kept**2) * width)
    assert found == analytic_macs(tower, 24, schedule, inside=True) + row + fusing + one_token_more
