from __future__ import annotations

import torch

from patchranking.predictor.networks import MixerPredictor


def test_one_score_a_patch_and_the_prefix_is_context_only():
    network = MixerPredictor(width=32, num_prefix_tokens=5, num_patches=12)
    tokens = torch.randn(2, 17, 32)
    scores = network(tokens)
    assert scores.shape == (2, 12)
    changed = tokens.clone()
    changed[:, 0] += torch.randn(32)
    assert not torch.allclose(network(changed), scores)


def test_images_do_not_influence_each_other():
    network = MixerPredictor(32, 1, 12).eval()
    tokens = torch.randn(3, 13, 32)
    torch.testing.assert_close(network(tokens)[1:2], network(tokens[1:2]))


def test_config_rebuilds_the_network():
    network = MixerPredictor(32, 1, 12, channels=8, token_hidden=4, channel_hidden=6)
    other = MixerPredictor(**network.config)
    other.load_state_dict(network.state_dict())
    tokens = torch.randn(1, 13, 32)
    assert torch.equal(other(tokens), network(tokens))


def test_it_is_small_beside_a_vit_b16():
    network = MixerPredictor(768, 1, 196)
    macs_of_reduction = 197 * 768 * 32
    macs_of_mixing = 2 * 32 * 197 * 16 + 2 * 197 * 32 * 64
    assert macs_of_reduction + macs_of_mixing < 0.01 * 17.56e9
    assert sum(p.numel() for p in network.parameters()) < 50_000
