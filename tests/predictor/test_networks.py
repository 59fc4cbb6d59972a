from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from patchranking.errors import UserError
from patchranking.predictor.networks import NETWORKS, Predictor

each_network = pytest.mark.parametrize("network", NETWORKS)


@each_network
@pytest.mark.parametrize("context", [True, False])
def test_one_score_a_patch_and_the_prefix_is_context_only(network, context):
    predictor = Predictor(32, 5, 12, network, context).eval()
    tokens = torch.randn(2, 17, 32)
    scores = predictor(tokens)
    assert scores.shape == (2, 12)
    changed = tokens.clone()
    changed[:, 0] += torch.randn(32)
    assert torch.equal(predictor(changed), scores) != context


@each_network
def test_images_do_not_influence_each_other(network):
    predictor = Predictor(32, 1, 12, network).eval()
    tokens = torch.randn(3, 13, 32)
    torch.testing.assert_close(predictor(tokens)[1:2], predictor(tokens[1:2]))


@each_network
@pytest.mark.parametrize("context", [True, False])
def test_config_rebuilds_the_network(network, context):
    predictor = Predictor(32, 1, 12, network, context, channels=8)
    other = Predictor(**json.loads(json.dumps(predictor.config)))
    other.load_state_dict(predictor.state_dict())
    tokens = torch.randn(1, 13, 32)
    assert torch.equal(other(tokens), predictor(tokens))


@each_network
def test_other_numbers_of_patches_are_taken_or_refused_in_a_sentence(network):
    predictor = Predictor(32, 1, 12, network)
    if predictor.any_length:
        assert predictor(torch.randn(1, 21, 32)).shape == (1, 20)
    else:
        with pytest.raises(UserError, match="fitted to 12 patches, and 20 came"):
            predictor(torch.randn(1, 21, 32))


@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_networks_without_places_follow_the_patches_when_they_change_places(network):
    predictor = Predictor(32, 1, 12, network).eval()
    tokens, order = torch.randn(2, 13, 32), torch.randperm(12)
    moved = torch.cat([tokens[:, :1], tokens[:, 1:][:, order]], 1)
    torch.testing.assert_close(predictor(moved), predictor(tokens)[:, order])


@each_network
def test_compiles_without_graph_breaks(network):
    predictor, tokens = Predictor(32, 1, 12, network).eval(), torch.randn(2, 13, 32)
    compiled = torch.compile(predictor, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), predictor(tokens))


@each_network
def test_it_is_small_beside_a_vit_b16(network):
    predictor = Predictor(768, 1, 196, network)
    with FlopCounterMode(display=False) as counter:
        predictor(torch.randn(1, 197, 768))
    assert 0 < counter.get_total_flops() / 2 < 0.01 * 17.56e9
    assert sum(weight.numel() for weight in predictor.parameters()) < 50_000
