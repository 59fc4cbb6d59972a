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
@pytest.mark.parametrize("merges", [True, False])
def test_config_rebuilds_the_network(network, context, merges):
    predictor = Predictor(32, 1, 12, network, context, channels=8, merges=merges)
    other = Predictor(**json.loads(json.dumps(predictor.config)))
    other.load_state_dict(predictor.state_dict())
    tokens = torch.randn(1, 13, 32)
    assert torch.equal(other(tokens), predictor(tokens))
    assert torch.equal(other.prune(tokens, 5).tokens, predictor.prune(tokens, 5).tokens)


def test_a_config_of_before_there_was_merging_is_one_that_does_not_merge():
    predictor = Predictor(32, 1, 12)
    config = {name: value for name, value in predictor.config.items() if name != "merges"}
    assert Predictor(**config).state_dict().keys() == predictor.state_dict().keys()


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


@torch.no_grad()
@each_network
def test_it_is_small_beside_a_vit_b16(network):
    """Of 196 patches 98 stay; merging adds what patches are matched by, their cosines and their fates."""
    predictor, tokens = Predictor(768, 1, 196, network), torch.randn(1, 197, 768)
    mixing = {
        "mixer": 2 * 197 * 32 * 16,
        "mlp": 32 * 32,
        "transformer": 4 * 197 * 32 * 32 + 2 * 197 * 197 * 32,
    }
    expected = 197 * 768 * 32 + mixing[network] + 2 * 197 * 32 * 64 + 196 * 32
    assert count_macs(predictor, tokens) == expected < 0.01 * 17.56e9
    assert count_macs(lambda tokens: predictor.prune(tokens, 98), tokens) == expected + 99 * 32 * 768
    assert sum(weight.numel() for weight in predictor.parameters()) < 75_000
    merging = Predictor(768, 1, 196, network, merges=True)
    matching = 196 * 768 * 32 + 98 * 98 * 32 + 98 * 33
    found = count_macs(lambda tokens: merging.prune(tokens, 98), tokens)
    assert found == expected + matching + 99 * 33 * 768 < 0.01 * 17.56e9
    assert sum(weight.numel() for weight in merging.parameters()) < 100_000


def corrected(predictor, tokens, keep):
    """All tokens with what they take over where a share is kept."""
    seen = tokens[:, predictor.num_prefix_tokens - predictor.num_context_tokens :]
    hidden = predictor.body(predictor.reduce(seen))
    moved = predictor.correction(nn.functional.layer_norm(hidden, hidden.shape[-1:]))
    return torch.cat([tokens[:, : tokens.shape[1] - seen.shape[1]], seen + (1 - keep) * moved], 1)


@torch.no_grad()
@each_network
@pytest.mark.parametrize("context", [True, False])
def test_the_correction_is_nothing_until_learned_and_grows_as_patches_go(network, context):
    predictor = Predictor(32, 2, 12, network, context).eval()
    tokens = torch.randn(2, 14, 32)
    order = best_first(predictor(tokens), 12)
    pruned = predictor.prune(tokens, 5, best_first)
    assert torch.equal(pruned.tokens, gather_tokens(tokens, order[:, :5], 2))
    assert torch.equal(pruned.keep_indices, order[:, :5])
    assert pruned.sizes is None
    nn.init.normal_(predictor.correction.weight)

    def moved(count):
        return predictor.prune(tokens, count, best_first).tokens - gather_tokens(tokens, order[:, :count], 2)

    little, much, none = moved(9), moved(3), moved(12)
    torch.testing.assert_close(much, 3 * little[:, :5], rtol=1e-3, atol=1e-4)
    assert not none.any()
    assert little[:, 2:].ne(0).all()
    assert little[:, :2].any() == context
    found = predictor.prune(tokens, 5, best_first)
    torch.testing.assert_close(found.tokens, gather_tokens(corrected(predictor, tokens, 5 / 12), order[:, :5], 2))
    halves = predictor.prune(tokens.half(), 5, best_first)
    assert torch.equal(halves.keep_indices, found.keep_indices)
    torch.testing.assert_close(halves.tokens, found.tokens.half(), rtol=0, atol=0.02)


@torch.no_grad()
@pytest.mark.parametrize("network", ["mlp", "transformer"])
def test_pruning_again_corrects_for_the_share_that_goes_of_what_came(network):
    """Of 8 patches that are left of 12, it keeps 6: three quarters."""
    predictor = Predictor(32, 1, 12, network).eval()
    nn.init.normal_(predictor.correction.weight)
    tokens = torch.randn(2, 9, 32)
    expected = gather_tokens(corrected(predictor, tokens, 0.75), top_patches(predictor(tokens), 6), 1)
    torch.testing.assert_close(predictor.prune(tokens, 6).tokens, expected)


@torch.no_grad()
@each_network
def test_the_correction_does_not_grow_with_what_the_body_gives(network):
    """It is a linear map of numbers of mean 0 and variance 1; here the map is the identity."""
    predictor = Predictor(32, 1, 12, network).eval()
    nn.init.eye_(predictor.correction.weight)
    tokens = torch.randn(2, 13, 32)
    found = predictor.prune(tokens, 6)
    moved = (found.tokens - gather_tokens(tokens, found.keep_indices, 1)) / 0.5
    torch.testing.assert_close(moved.mean(-1), torch.zeros(2, 7), rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.square().mean(-1), torch.ones(2, 7), rtol=0, atol=1e-2)


def learned(*arguments, **options):
    """A merging predictor whose fates and corrections depend on all that they are given."""
    predictor = Predictor(*arguments, merges=True, **options).eval()
    for layer in (predictor.fate, predictor.correction):
        nn.init.normal_(layer.weight, std=0.3)
        nn.init.normal_(layer.bias, std=0.3)
    return predictor


@torch.no_grad()
@each_network
@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_merging_equals_a_loop_over_the_patches(network, context, sized):
    """A share of each patch that goes joins the most similar one that stays; both count by their sizes."""
    predictor, tokens = learned(32, 2, 12, network, context), torch.randn(3, 14, 32)
    sizes = 1 + torch.rand(3, 14) if sized else torch.ones(3, 14)
    found = predictor.prune(tokens, 5, best_first, sizes if sized else None)
    hidden = predictor.body(predictor.reduce(tokens[:, 0 if context else 2 :]))
    channels = nn.functional.layer_norm(hidden, (32,))
    compared = predictor.match(predictor.reduce[0](tokens[:, 2:]))
    for image, order in enumerate(best_first(predictor(tokens), 12).tolist()):
        sums, total = sizes[image, :, None] * tokens[image], sizes[image].clone()
        for gone in order[5:]:
            cosines = [
                torch.cosine_similarity(compared[image, gone], compared[image, other], dim=0) for other in order[:5]
            ]
            best = max(range(5), key=lambda at, cosines=cosines: cosines[at].item())
            own = channels[image, gone + (2 if context else 0)]
            share = predictor.fate(torch.cat([own, cosines[best][None]])).sigmoid()
            sums[2 + order[best]] += share * sizes[image, 2 + gone] * tokens[image, 2 + gone]
            total[2 + order[best]] += share[0] * sizes[image, 2 + gone]
        left = [0, 1, *(2 + patch for patch in order[:5])]
        expected = (sums / total[:, None])[left]
        about = torch.cat([channels[image], total[0 if context else 2 :, None].log()], 1)
        moved = torch.zeros(14, 32)
        moved[0 if context else 2 :] = 7 / 12 * predictor.correction(about)
        torch.testing.assert_close(found.tokens[image], expected + moved[left], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sizes[image], total[left])
        assert found.keep_indices[image].tolist() == order[:5]


@torch.no_grad()
def test_before_it_is_learned_a_fate_depends_on_the_similarity_alone():
    """Of cosines 1, 0.6 and -1, nearly all, half and nothing merges: the third patch stays, the others go."""
    predictor = Predictor(2, 0, 4, "mlp", channels=4, merges=True)
    predictor.reduce[0] = nn.Identity()
    nn.init.zeros_(predictor.match.bias)
    nn.init.zeros_(predictor.match.weight)[:2] = torch.eye(2)
    tokens = torch.tensor([[[2.0, 0], [0.6, 0.8], [1, 0], [-3, 0]]])
    found = predictor.prune(tokens, 1, lambda scores, count: torch.tensor([[2]]))
    shares = torch.sigmoid(10 * (torch.tensor([1.0, 0.6, -1]) - 0.6))
    torch.testing.assert_close(found.sizes, 1 + shares.sum().view(1, 1))


@torch.no_grad()
def test_matching_starts_from_the_leading_directions_of_the_keys():
    """Of keys that are a linear map of the normed tokens, whose dependent channels leave the rank one short."""
    predictor, tokens = Predictor(48, 1, 12, "mlp", merges=True), torch.randn(40, 13, 48)
    normed = nn.functional.layer_norm(tokens[:, 1:], (48,))
    few = normed @ torch.randn(48, 20) @ torch.randn(20, 64) + 5
    predictor.match_by(tokens, few)
    centred = few - few.mean((0, 1))
    found = nn.functional.normalize(predictor.match(normed), dim=-1)
    expected = nn.functional.normalize(centred, dim=-1)
    torch.testing.assert_close(found @ found.mT, expected @ expected.mT, rtol=0, atol=1e-3)
    many = normed @ torch.randn(48, 64)
    predictor.match_by(tokens, many)
    centred = (many - many.mean((0, 1))).flatten(0, 1)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    found, expected = predictor.match(normed).flatten(0, 1), centred @ directions[:32].T
    assert (found @ found.T - expected @ expected.T).norm() < 1e-3 * spread[:32].square().norm()


@torch.no_grad()
def test_where_keys_have_few_channels_the_others_compare_nothing():
    predictor = Predictor(16, 1, 12, "mlp", merges=True)
    predictor.match_by(torch.randn(3, 13, 16), torch.randn(3, 12, 8))
    assert predictor.match.weight[:8].any(1).all()
    assert not predictor.match.weight[8:].any()
    assert not predictor.match.bias[8:].any()


@torch.no_grad()
@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_soft_gates_multiply_the_sizes(merges, sized):
    """Gates that are open are a hard choice."""
    predictor = learned(32, 1, 12) if merges else Predictor(32, 1, 12).eval()
    tokens, sizes = torch.randn(2, 13, 32), 1 + torch.rand(2, 13) if sized else None
    hard = predictor.prune(tokens, 5, best_first, sizes)
    opened = predictor.prune(tokens, 5, sizes=sizes, soften=lambda s, count: (best_first(s, count), torch.zeros(2, 5)))
    assert torch.equal(opened.tokens, hard.tokens)
    log_gates = -torch.rand(2, 5)
    soft = predictor.prune(tokens, 5, sizes=sizes, soften=lambda s, count: (best_first(s, count), log_gates))
    gates = torch.cat([torch.ones(2, 1), log_gates.exp()], 1)
    torch.testing.assert_close(soft.sizes, gates * (1 if hard.sizes is None else hard.sizes))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tokens_of_any_precision_merge_and_keep_it(dtype):
    predictor, tokens = learned(32, 1, 12), torch.randn(2, 13, 32)
    expected = predictor.prune(tokens, 5)
    found = predictor.prune(tokens.to(dtype), 5)
    assert found.tokens.dtype == dtype
    assert torch.equal(found.keep_indices, expected.keep_indices)
    torch.testing.assert_close(found.tokens.float(), expected.tokens, rtol=0, atol=0.1)
    torch.testing.assert_close(found.sizes.float(), expected.sizes, rtol=0, atol=0.05)
