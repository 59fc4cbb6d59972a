from __future__ import annotations

import copy
import re

import peft
import pytest
import torch
from torch import nn

from patchranking.errors import UserError
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower
from patchranking.towers.identity import _places, fingerprint, matches


def test_the_same_weights_in_another_precision_match(case):
    expected = fingerprint(case.tower)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        other = as_tower(copy.deepcopy(case.model).to(dtype))
        assert matches(expected, fingerprint(other))


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


WEIGHTS = [
    r"conv1|patch_embed\.proj|embeddings\.patch_embedding|embeddings\.patch_embeddings(\.projection)?",
    r".*\.4\.mlp\.(c_fc|fc1|fc1_x|up_proj)",
    r"ln_post|norm|fc_norm|post_layernorm|layernorm",
]


def test_it_is_of_the_patch_embedding_the_last_mlp_and_the_last_norm(case):
    names = {id(weight): name for name, weight in case.tower.module.named_parameters()}
    for weight, name in zip(case.tower.identity(), WEIGHTS, strict=True):
        assert re.fullmatch(rf"({name})\.weight", names[id(weight)])


def test_places_are_exact_however_long_a_matrix_is():
    for length in (1792 * 15360, 2**24 + 2, 2**31 + 7):
        places = _places(length).tolist()
        assert (places[0], places[-1], len(places)) == (0, length - 1, 32)
        assert all(place == number * (length - 1) // 31 for number, place in enumerate(places))
    assert torch.equal(_places(2**24), torch.linspace(0, 2**24 - 1, 32).long())


def test_a_quantised_model_is_told_by_what_is_not_quantised(case):
    pruner = Pruner.unfitted(case.tower, "tiny", Schedule({1: 0.5}))
    quantised = torch.ao.quantization.quantize_dynamic(case.model, {nn.Linear})
    tower = as_tower(quantised)
    assert fingerprint(tower)[32:64] == [None] * 32
    assert matches(fingerprint(tower), fingerprint(case.tower))
    with torch.inference_mode(), pruner.attached(quantised):
        pruned = tower(case.pixels)
    assert not torch.equal(pruned, tower(case.pixels))
    with torch.no_grad():
        tower.identity()[0].mul_(1.05)
    with pytest.raises(UserError, match="other weights"):
        pruner.attach(quantised)


def test_without_a_weight_as_it_was_a_model_is_refused(tower, monkeypatch):
    monkeypatch.setattr(type(tower), "identity", lambda _: [torch.zeros(64, dtype=torch.int8)] * 3)
    with pytest.raises(UserError, match="quantised or sharded"):
        fingerprint(tower)
    assert not matches([None, None], [None, 1.0])


@pytest.mark.parametrize("case", ["transformers", "timm-clip"], indirect=True)
def test_adapters_leave_the_fingerprint_of_the_model_under_them(case):
    before = fingerprint(case.tower)
    adapted = peft.get_peft_model(case.model, peft.LoraConfig(target_modules=["fc1", "qkv", "q_proj"], r=2))
    assert fingerprint(as_tower(adapted)) == before
