from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.prompts.insert import prompted_features
from patchranking.towers import as_text_tower
from patchranking.towers.transformers.families import family_name
from patchranking.towers.zero_shot import class_features

NAMES = ["CLIPModel", "MetaClip2Model", "CLIPSegModel", "SiglipModel", "Siglip2Model", "ChineseCLIPModel"]
NAMES += ["AltCLIPModel", "BlipModel", "OwlViTModel", "Owlv2Model"]
TEXTS = ["the sun", "a photo of the small red umbrella", "", "a photo of " * 9]


@pytest.fixture(params=NAMES)
def both(request, make, make_tokenizer):
    """A model, its tokenizer, and the tower of its text side."""
    model = make(request.param).model
    tokenizer = make_tokenizer(family_name(model))
    for name, weight in model.text_model.named_parameters():
        if "embed" in name or weight.ndim == 2:
            weight.mul_(10)  # so that texts differ
    return model, tokenizer, as_text_tower(model, tokenizer)


@torch.inference_mode()
def test_features_are_those_of_the_library_for_what_the_tokenizer_returns(both):
    model, tokenizer, text = both
    padding = "max_length" if "siglip" in family_name(model) else True
    given = tokenizer(TEXTS, padding=padding, truncation=True, max_length=12, return_tensors="pt")
    given.pop("token_type_ids", None)
    expected = F.normalize(model.get_text_features(**given).pooler_output, dim=-1)
    found = text(TEXTS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found @ found.T - torch.eye(len(TEXTS))).abs().max() < 1 - 1e-4


@torch.inference_mode()
def test_an_end_that_also_pads_is_no_padding(make, make_tokenizer):
    model, tokenizer = make("SiglipModel").model, make_tokenizer("siglip")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for weight in model.text_model.parameters():
        if weight.ndim == 2:
            weight.mul_(3)
    given = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    given.pop("token_type_ids", None)
    expected = F.normalize(model.get_text_features(**given).pooler_output, dim=-1)
    torch.testing.assert_close(as_text_tower(model, tokenizer)(TEXTS), expected, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_text_alone_is_the_text_among_others(both):
    _, _, text = both
    together = text(TEXTS)
    for row, alone in enumerate(TEXTS):
        torch.testing.assert_close(text([alone])[0], together[row], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_siglip_pads_to_the_length_it_was_trained_with_and_the_others_to_the_longest(both):
    model, _, text = both
    ids = text.tokenize(["the sun", "a"])
    assert text.context_length == 12
    assert ids.shape[1] == (12 if "siglip" in family_name(model) else 4)
    assert text.tokenize(TEXTS).shape == (4, 12)


@torch.no_grad()
def test_context_equals_the_words_it_stands_for(both):
    """Embeddings of words, put in front of a text, give what these words in front of it give."""
    _, _, text = both
    first = int(text.tokenize([""])[0, 0] == text.tokenize(["a"])[0, 0])
    words = text.embedding(text.tokenize(["a photo of"])[0, first : first + 3])
    found = prompted_features(text, words[None], ["the sun"])
    torch.testing.assert_close(found, text(["a photo of the sun"]), rtol=1e-4, atol=1e-5)


def test_gradients_flow_to_context_at_every_depth(both):
    _, _, text = both
    context = torch.randn(2, 3, 32, requires_grad=True)
    prompted_features(text, context, ["the sun", "a red umbrella"])[:, 0].sum().backward()
    assert context.grad.abs().amax((1, 2)).min() > 0


@torch.inference_mode()
def test_the_head_for_zero_shot_has_unit_rows(both):
    _, _, text = both
    head = class_features(text, ["sun", "umbrella"], ["a photo of the {}", "a small {}"])
    assert head.shape[0] == 2
    torch.testing.assert_close(head.norm(dim=-1), torch.ones(2))


def test_positions_that_no_token_takes_are_left_out(make, make_tokenizer):
    """RoBERTa counts positions from behind the number of the padding."""
    text = as_text_tower(make("AltCLIPModel").model, make_tokenizer("altclip", longest=10**30))
    assert text.context_length == 16 - 2
    assert text(["a photo of " * 9]).isfinite().all()


@pytest.mark.parametrize("name", ["CLIPVisionModel", "ViTModel", "SiglipForImageClassification"])
def test_a_model_without_a_known_text_side_is_refused(make, make_tokenizer, name):
    with pytest.raises(UserError, match=f"{name} has no text side that is supported"):
        as_text_tower(make(name).model, make_tokenizer("clip"))
