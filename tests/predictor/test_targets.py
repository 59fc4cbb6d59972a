from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from patchranking import as_tower
from patchranking.errors import UserError
from patchranking.predictor.distill import distill, soft_damage
from patchranking.predictor.networks import Predictor
from patchranking.predictor.targets import FEATURE, HandedOn, check_handed_on, handed_on_after, token_damage
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.ranking.objectives import feature_damage
from patchranking.towers.identity import BaseModel

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 5}
STAGES = Schedule({1: 0.75, 3: 0.5})
IMAGE_TOKEN = 63
TOWERS = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=32, patch_size=8)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES, image_size=32, patch_size=8)),
    "siglip-no-head": lambda: SiglipVisionModel(
        SiglipVisionConfig(**SIZES, image_size=32, patch_size=8, vision_use_head=False)
    ),
}


@pytest.fixture(params=TOWERS)
def encoder(request):
    """An image encoder as LLaVA and its like have them; CLIP's weights are as large as SigLIP's."""
    model = TOWERS[request.param]().eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(3 if request.param == "clip" and weight.ndim > 1 else 1)
    return model


@pytest.fixture
def llava():
    vision, text = CLIPVisionConfig(**SIZES, image_size=32, patch_size=8), LlamaConfig(**SIZES, vocab_size=64)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    return LlavaForConditionalGeneration(config).eval().requires_grad_(False)


def predictors(tower, merges=True, schedule=STAGES):
    return {block: Predictor.for_tower(tower, "mlp", merges=merges) for block in schedule.stages}


def handing_on(tower, own, layer=-2, schedule=STAGES):
    return Pruner(own, BaseModel.of(tower, "tiny"), schedule, hands_on=layer).eval()


def handed_on(model, pixels, layer=-2):
    return model(pixels, output_hidden_states=True).hidden_states[layer]


def test_every_token_is_held_against_the_one_of_its_own_place():
    dense, tokens = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    places = torch.tensor([[0, 2, 4], [3, 1, 0]])
    apart = torch.stack(
        [1 - F.cosine_similarity(tokens[image], dense[image, places[image]], dim=-1) for image in range(2)]
    )
    torch.testing.assert_close(token_damage(tokens, dense, places), apart.mean(1))
    torch.testing.assert_close(token_damage(2 * dense, dense), torch.zeros(2), rtol=0, atol=1e-6)
    gates = torch.tensor([[1, 0.5, 0], [1, 1, 0.25]])
    expected = torch.stack([apart[0] @ gates[0] / 1.5, apart[1] @ gates[1] / 2.25])
    torch.testing.assert_close(token_damage(tokens, dense, places, gates), expected)


def test_a_patch_that_is_hard_to_preserve_does_not_close_its_own_gate():
    dense, gates = torch.randn(2, 5, 8), torch.rand(2, 5, requires_grad=True)
    tokens = torch.randn(2, 5, 8, requires_grad=True)
    token_damage(tokens, dense, gates=gates).sum().backward()
    assert gates.grad is None
    assert tokens.grad.any()


def test_merged_patches_count_once_and_prefix_tokens_do_not_count(tower):
    sizes, tokens, dense = torch.rand(3, 17) * 4, torch.randn(3, 17, 32), torch.randn(3, 16, 32)
    found = type("Found", (), {"tokens": tokens, "keep_indices": None, "sizes": sizes})
    expected = token_damage(tokens[:, 1:], dense, None, sizes[:, 1:].clamp(max=1))
    assert torch.equal(HandedOn(4).damage(tower, found, dense), expected)


@torch.inference_mode()
def test_what_is_kept_of_the_dense_model_is_its_hidden_state(encoder):
    tower, pixels = as_tower(encoder), torch.randn(2, 3, 32, 32)
    for layer in (-2, 2):
        target = HandedOn(handed_on_after(layer, tower.depth))
        dense = target.dense(tower, tower.embed(pixels, target.stop))
        state = handed_on(encoder, pixels, layer)[:, tower.num_prefix_tokens :]
        assert torch.equal(dense, F.normalize(state, dim=-1))
        assert dense.shape[1:] == target.shape(tower)


def test_layers_are_counted_as_transformers_does():
    assert [handed_on_after(layer, 5) for layer in (1, 5, -1, -2, -5)] == [1, 5, 5, 4, 1]
    for layer in (0, 6, -6):
        with pytest.raises(UserError, match=r"5 blocks, and hidden_states\[-?\d\] .* --layer is 1 to 5"):
            handed_on_after(layer, 5)


def test_stages_that_come_too_late_are_refused(tower):
    check_handed_on(Schedule({1: 0.7, 3: 0.5}), -2, 5)
    with pytest.raises(UserError, match=r"hidden_states\[-2\] is what block 3 leaves, .* before block 4 are still in"):
        check_handed_on(Schedule({1: 0.7, 4: 0.5}), -2, 5)
    pruner = handing_on(tower, predictors(tower))
    with pytest.raises(UserError, match="before block 3 at the latest"):
        pruner.scheduled(Schedule({1: 0.7, 4: 0.5}))


@torch.inference_mode()
@pytest.mark.parametrize("merges", [True, False])
def test_a_hard_choice_is_what_the_attached_pruner_hands_on(encoder, merges, monkeypatch):
    tower, pixels, target = as_tower(encoder), torch.randn(3, 3, 32, 32), HandedOn(4)
    own, prefix = predictors(tower, merges), tower.num_prefix_tokens
    state = handed_on(encoder, pixels)[:, prefix:]
    chosen, prune = [], Predictor.prune

    def watched(*arguments, **options):
        chosen.append(prune(*arguments, **options))
        return chosen[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "prune", watched)
        with handing_on(tower, own).attached(encoder):
            tokens = handed_on(encoder, pixels)[:, prefix:]
    first, second = (found.keep_indices for found in chosen)
    expected = feature_damage(tokens, state.gather(1, first.gather(1, second)[..., None].expand(-1, -1, 32))).mean(1)
    assert expected.min() > 1e-4
    dense = target.dense(tower, tower.embed(pixels, 4))
    found = soft_damage(own, tower, tower.embed(pixels, 1), dense, STAGES, target=target)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("encoder", ["clip", "siglip"], indirect=True)
def test_distillation_brings_the_tokens_handed_on_nearer(encoder, merges):
    tower, target = as_tower(encoder), HandedOn(4)
    prefix, width = tower.num_prefix_tokens, 32
    tokens = (torch.randn(96, 4) @ torch.randn(4, (prefix + 16) * width)).unflatten(1, (prefix + 16, width))
    dense, own = target.dense(tower, tower.run(tokens, 1, 4)).half(), predictors(tower, merges)
    settings = {"schedule": STAGES, "target": target, "learning_rate": 5e-3}
    before = distill(own, tower, tokens[None], dense[None], steps=1, **settings).feature_error
    after = distill(own, tower, tokens[None], dense[None], steps=40, **settings).feature_error
    assert after["0.4"] < 0.8 * before["0.4"]


def test_the_choice_is_learned_by_what_patches_do_to_others(tower):
    """The gradient reaches every part of every stage, and the blocks after the hidden state have none of it."""
    own, tokens, target = predictors(tower), torch.randn(4, 17, 32), HandedOn(4)
    dense = target.dense(tower, tower.run(tokens, 1, 4))
    nn.init.constant_(tower.blocks[4].mlp.fc2.weight, torch.nan)
    soft_damage(own, tower, tokens, dense, STAGES.at(0.25), 0.03, target).mean().backward()
    for predictor in own.values():
        for part in ("reduce.1", "score.1", "match", "fate", "correction"):
            gradient = dict(predictor.named_parameters())[f"{part}.weight"].grad
            assert gradient.any()
            assert gradient.isfinite().all()


@torch.inference_mode()
def test_the_hidden_state_has_as_many_tokens_as_fitted_without_a_warning(encoder):
    tower, pixels = as_tower(encoder), torch.randn(2, 3, 32, 32)
    dense, prefix = handed_on(encoder, pixels), tower.num_prefix_tokens
    pruner = handing_on(tower, predictors(tower))
    with pruner.attached(encoder), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert handed_on(encoder, pixels).shape[1] == prefix + 8
        pruner.keep = 0.25
        assert handed_on(encoder, pixels).shape[1] == prefix + 4
        pruner.keep = 1.0
        assert torch.equal(handed_on(encoder, pixels), dense)
    assert torch.equal(handed_on(encoder, pixels), dense)
    with handing_on(tower, predictors(tower), None).attached(encoder), pytest.warns(UserWarning, match="no map"):
        handed_on(encoder, pixels)


@torch.inference_mode()
@pytest.mark.parametrize("layer", [-2, None])
def test_llava_takes_a_prompt_with_as_many_placeholders_as_tokens_go_on(llava, layer):
    """With any pruner: it asks for one hidden state alone."""
    tower, pixels = as_tower(llava.model.vision_tower), torch.randn(1, 3, 32, 32)

    def answer(image_tokens):
        prompt = torch.tensor([[1, *[IMAGE_TOKEN] * image_tokens, 2]])
        return llava(input_ids=prompt, pixel_values=pixels).logits

    dense, pruner = answer(16), handing_on(tower, predictors(tower), layer)
    with pruner.attached(llava.model.vision_tower):
        assert answer(8).shape == (1, 10, 64)
        with pytest.raises(ValueError, match="do not match"):
            answer(16)
        pruner.keep = 1.0
        assert torch.equal(answer(16), dense)


def test_an_artefact_remembers_what_it_hands_on(tower, tmp_path):
    handing_on(tower, predictors(tower), -2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["target"], config["layer"]) == ("tokens", -2)
    loaded = Pruner.from_pretrained(tmp_path)
    assert [one.hands_on for one in (loaded, loaded.at(0.3), loaded.scheduled(STAGES.at(0.6)))] == [-2] * 3


def test_an_older_artefact_is_of_the_feature(tower, tmp_path):
    handing_on(tower, predictors(tower), None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config.pop("target"), config.pop("layer")) == ("feature", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Pruner.from_pretrained(tmp_path).hands_on is None


def test_a_model_without_a_pooled_feature_has_tokens_for_a_target():
    tower = as_tower(TOWERS["siglip-no-head"]())
    HandedOn(4).check(tower)
    with pytest.raises(UserError, match="no pooling head"):
        FEATURE.check(tower)
