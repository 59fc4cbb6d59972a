from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs
from patchranking.predictor.networks import NETWORKS, Predictor
from patchranking.pruning.select import best_first, gather_tokens, top_patches

each_network = pytest.mark.parametrize("network", NETWORKS)


@each_network
@pytest.mark.parametrize("context", [True, False])
def test_one_score_a_patch_and_the_prefix_is_context_only(network, context):
    predictor = Predictor(32, 5, 12, network, context).eval()
    tokens = torch.randn(2, 17, 32)
    scores = predictor(tokens)
    assert scores.shape == (2, 12)
    for place in range(5):
        changed = tokens.clone()
        changed[:, place] += torch.randn(32)
        assert torch.equal(predictor(changed), scores) != context


@each_network
def test_patches_alone_will_do_in_any_precision(network):
    predictor, tokens = Predictor(32, 0, 12, network), torch.randn(2, 12, 32)
    scores = predictor(tokens)
    assert torch.equal(predictor(tokens.double()), scores), "it computes in its own precision"
    exact = predictor.double()(tokens.double())
    assert exact.dtype == torch.double
    torch.testing.assert_close(exact.float(), scores, rtol=0, atol=1e-5)


@each_network
def test_only_the_mlp_judges_each_patch_by_itself(network):
    predictor = Predictor(32, 1, 12, network).eval()
    tokens = torch.randn(1, 13, 32)
    scores, changed = predictor(tokens), tokens.clone()
    changed[:, 4] += torch.randn(32)
    moved = (predictor(changed) != scores)[0].nonzero().flatten().tolist()
    assert moved == ([3] if network == "mlp" else list(range(12)))


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


def test_unknown_networks_and_uneven_channels_are_refused():
    with pytest.raises(UserError, match="choose from mixer, mlp, transformer"):
        Predictor(32, 1, 12, "cnn")
    with pytest.raises(UserError, match="30 channels: choose a multiple of 4"):
        Predictor(32, 1, 12, channels=30)


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
    mixing = {
        "mixer": 2 * 197 * 32 * 16,
        "mlp": 32 * 32,
        "transformer": 4 * 197 * 32 * 32 + 2 * 197 * 197 * 32,
    }
    reduced = 197 * 768 * 32
    expected = reduced + mixing[network] + 2 * 197 * 32 * 64 + 196 * 32
    assert count_macs(predictor, torch.randn(1, 197, 768)) == expected < 0.01 * 17.56e9
    correcting = count_macs(lambda tokens: predictor.correct(tokens, 0.5)[1], torch.randn(1, 197, 768))
    assert correcting == expected + reduced < 0.01 * 17.56e9
    assert sum(weight.numel() for weight in predictor.parameters()) < 75_000


@each_network
@pytest.mark.parametrize("context", [True, False])
def test_the_correction_is_nothing_until_learned_and_grows_as_patches_go(network, context):
    predictor = Predictor(32, 2, 12, network, context).eval()
    tokens = torch.randn(2, 14, 32)
    scores, corrected = predictor.correct(tokens, 0.4)
    assert torch.equal(scores, predictor(tokens))
    assert torch.equal(corrected, tokens)
    nn.init.normal_(predictor.correction.weight)
    little, much, none = (predictor.correct(tokens, keep)[1] - tokens for keep in (0.8, 0.4, 1.0))
    torch.testing.assert_close(much, 3 * little, rtol=1e-3, atol=1e-4)
    assert not none.any()
    assert little[:, 2:].ne(0).all()
    assert little[:, :2].any() == context
    kept = best_first(scores, 5)
    torch.testing.assert_close(
        predictor.prune(tokens, 5, best_first).tokens, gather_tokens(predictor.correct(tokens, 5 / 12)[1], kept, 2)
    )
    halves = predictor.correct(tokens.half(), 0.4)
    torch.testing.assert_close(halves[0], scores, rtol=0, atol=0.01)
    torch.testing.assert_close(halves[1], corrected.half() + much.half(), rtol=0, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_pruning_again_corrects_for_the_share_that_goes_of_what_came(network):
    """Of 8 patches that are left of 12, it keeps 6: three quarters."""
    predictor = Predictor(32, 1, 12, network).eval()
    nn.init.normal_(predictor.correction.weight)
    tokens = torch.randn(2, 9, 32)
    scores, corrected = predictor.correct(tokens, 0.75)
    expected = gather_tokens(corrected, top_patches(scores, 6), 1)
    torch.testing.assert_close(predictor.prune(tokens, 6).tokens, expected)


@torch.no_grad()
@each_network
def test_the_correction_does_not_grow_with_what_the_body_gives(network):
    """It is a linear map of numbers of mean 0 and variance 1; here the map is the identity."""
    predictor = Predictor(32, 1, 12, network).eval()
    nn.init.eye_(predictor.correction.weight)
    tokens = torch.randn(2, 13, 32)
    moved = (predictor.correct(tokens, 0.5)[1] - tokens) / 0.5
    torch.testing.assert_close(moved.mean(-1), torch.zeros(2, 13), rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.square().mean(-1), torch.ones(2, 13), rtol=0, atol=1e-2)
