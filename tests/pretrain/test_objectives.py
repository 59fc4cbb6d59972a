from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from patchranking.pretrain.compression import Compression
from patchranking.pretrain.contrastive import ContrastiveSettings, make_objective
from patchranking.pretrain.cost import forward_share
from patchranking.pretrain.encoder import normalisation_of
from patchranking.pretrain.moco import info_nce
from patchranking.pretrain.objective import Step
from patchranking.pretrain.pictures import drop_noise
from patchranking.pretrain.schedule import momentum_at

SMALL = {"image_size": 32, "patch_size": 4, "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2}, "head": 32}
METHODS = ("moco", "simclr", "dino")


@pytest.fixture(params=METHODS)
def objective(request):
    return make_objective(ContrastiveSettings(method=request.param, **SMALL))


def step_of(compression, batch=6, share=0.5, number=0):
    return Step(compression, drop_noise(0, number, batch), share)


def views_of(batch=6):
    return [torch.randn(batch, 3, 32, 32) for _ in range(2)]


def test_info_nce_is_the_published_pseudocode():
    queries, keys = torch.randn(5, 8), torch.randn(5, 8)
    q, k = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    logits = q.mm(k.t()) / 0.2
    assert info_nce(queries, keys, 0.2) == F.cross_entropy(logits, torch.arange(5)) * 2 * 0.2


@pytest.mark.parametrize("compression", [Compression(4), Compression(8), Compression(8, 0.5)], ids=str)
def test_a_small_step_against_the_gradient_lessens_the_loss(objective, compression):
    fixed, buffers = views_of(), {name: value.clone() for name, value in objective.named_buffers()}
    first = objective(fixed, step_of(compression))
    first.backward()
    weights = [weight for weight in objective.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in weights)
    with torch.no_grad():
        length = torch.cat([weight.grad.flatten() for weight in weights]).norm()
        for weight in weights:
            weight.sub_(1e-3 * weight.grad / length)
        for name, value in objective.named_buffers():
            value.copy_(buffers[name])
    assert objective(fixed, step_of(compression)) < first


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_the_momentum_encoder_follows(method):
    objective = make_objective(ContrastiveSettings(method=method, **SMALL))
    before = copy.deepcopy(objective.key_encoder.state_dict())
    with torch.no_grad():
        for weight in objective.encoder.parameters():
            weight.add_(1.0)
    objective.after_step(0.5)
    momentum = momentum_at(0.5, 0.99 if method == "moco" else 0.996)
    for name, value in objective.key_encoder.state_dict().items():
        expected = momentum * before[name] + (1 - momentum) * objective.encoder.state_dict()[name]
        torch.testing.assert_close(value, expected)
    assert not any(weight.requires_grad for weight in objective.key_encoder.parameters())


def test_costs_are_the_passes_of_each_encoder():
    one = Compression(8, 0.5)
    share = {name: make_objective(ContrastiveSettings(method=name, **SMALL)) for name in METHODS}
    tower = share["moco"].tower
    query, key = forward_share(tower, one), forward_share(tower, Compression(8))
    assert share["moco"].passes(one) == pytest.approx(query + key / 3)
    assert share["dino"].passes(one) == pytest.approx(2 * (query + key / 3))
    assert share["simclr"].passes(one) == pytest.approx(2 * query)
    for name, passes in {"moco": 4 / 3, "dino": 8 / 3, "simclr": 2}.items():
        assert share[name].passes(Compression(4)) == pytest.approx(passes)


@pytest.mark.parametrize(("keys", "tokens"), [("patch", [9, 17]), ("full", [9, 65]), ("both", [9, 9])])
def test_keys_are_compressed_as_asked(keys, tokens):
    objective = make_objective(ContrastiveSettings(keys=keys, **SMALL))
    seen = []
    for encoder in (objective.encoder, objective.key_encoder):
        encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    objective(views_of(), step_of(Compression(8, 0.5)))
    assert seen == tokens


def test_views_have_the_size_and_differ(objective):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
    views = objective.views(normalisation_of(objective.encoder))(picture)
    assert [tuple(view.shape) for view in views] == [(3, 32, 32)] * 2
    assert not torch.equal(*views)


def test_weights_are_drawn_as_in_moco_v3(objective):
    block, patches = objective.encoder.blocks[0], objective.encoder.patch_embed.proj
    for weight, into, out in (
        (block.attn.qkv.weight, 32, 32),
        (block.mlp.fc1.weight, 32, 128),
        (patches.weight, 3 * 16, 32),
    ):
        bound = (6 / (into + out)) ** 0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert not block.attn.qkv.bias.any()


def test_mocos_patch_embedding_stays(objective):
    weight = objective.encoder.patch_embed.proj.weight
    assert weight.requires_grad == (type(objective).__name__ != "MoCo")


def test_dinos_last_layer_waits_for_the_first_hundredth():
    objective = make_objective(ContrastiveSettings(method="dino", **SMALL))
    for share, waits in ((0.0, True), (0.02, False)):
        objective(views_of(), step_of(Compression(4), share=share)).backward()
        objective.after_backward(share)
        assert (objective.projector.last_layer.weight_v.grad is None) == waits
