from __future__ import annotations

import copy

import pytest
import torch

from patchranking.towers import as_tower
from patchranking.towers.identity import fingerprint, matches


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_weights_in_another_precision_match(case, dtype):
    other = as_tower(copy.deepcopy(case.model).to(dtype))
    assert matches(fingerprint(case.tower), fingerprint(other))


def test_slightly_tuned_weights_do_not_match(case):
    before = fingerprint(case.tower)
    case.tower.identity()[1].mul_(1.05)
    assert not matches(before, fingerprint(case.tower))


def test_fingerprints_of_other_lengths_do_not_match():
    assert not matches([1.0, 2.0], [1.0])
    assert not matches([1.0, 1.0], [1.0])


@pytest.mark.parametrize(("value", "same"), [(1.007, True), (1.012, False), (0.993, True), (0.988, False)])
def test_weights_match_up_to_the_rounding_of_bfloat16(value, same):
    assert matches([0.5, 1.0], [0.5, value]) is same


def test_near_zero_weights_match_up_to_a_hundred_thousandth():
    assert matches([0.0], [8e-6])
    assert not matches([0.0], [3e-5])


def test_it_samples_32_values_of_every_weight_from_the_first_to_the_last(case):
    found = fingerprint(case.tower)
    assert len(found) == 3 * 32
    for start, weight in zip((0, 32, 64), case.tower.identity(), strict=True):
        values = weight.detach().flatten()
        assert (found[start], found[start + 31]) == (round(values[0].item(), 7), round(values[-1].item(), 7))


WEIGHTS = {
    "open_clip": ["conv1.weight", "transformer.resblocks.4.mlp.c_fc.weight", "ln_post.weight"],
    "transformers": ["embeddings.patch_embedding.weight", "encoder.layers.4.mlp.fc1.weight", "post_layernorm.weight"],
    "timm": ["patch_embed.proj.weight", "blocks.4.mlp.fc1.weight", "norm.weight"],
}


def test_it_is_of_the_patch_embedding_the_last_mlp_and_the_last_norm(case):
    weights = dict(case.tower.module.named_parameters())
    names = WEIGHTS[type(case.tower).__module__.rpartition(".")[2]]
    if "norm.weight" in names and "norm.weight" not in weights:
        names = [*names[:2], "fc_norm.weight"]
    if "blocks.4.mlp.fc1_x.weight" in weights:  # not what gates it
        names = [names[0], "blocks.4.mlp.fc1_x.weight", names[2]]
    assert [id(weight) for weight in case.tower.identity()] == [id(weights[name]) for name in names]
