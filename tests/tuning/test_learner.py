from __future__ import annotations

import pytest
import torch

from patchranking import Pruner
from patchranking.data import load_data
from patchranking.predictor.networks import Predictor
from patchranking.prompts.insert import prompted_features
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.schedule import Schedule
from patchranking.towers.identity import BaseModel
from patchranking.towers.zero_shot import class_features
from patchranking.tuning.learner import Learner

TEXTS = ["red umbrella.", "sun."]


def predictor_of(model):
    """Random, with a correction of the tokens that is not nothing."""
    predictor = Predictor.for_tower(model.tower).eval()
    torch.nn.init.normal_(predictor.correction.weight)
    return predictor


def pruner_of(model, predictor=None, block=3):
    base = BaseModel.of(model.tower, "tiny")
    return Pruner({block: predictor or predictor_of(model)}, base, Schedule({block: 0.5})).eval()


def learner_of(model, prompts, pruner, data=None):
    return Learner(prompts, model, model.text, pruner, data or load_data("demo:test", 3))


def tokens(kind, **sizes):
    return Prompts(kind, 16, 32, **{"num_tokens": 2, **sizes})


@torch.no_grad()
@pytest.mark.parametrize("kind", ["text", "visual"])
@pytest.mark.parametrize("block", [0, 3])
def test_images_are_pruned_by_the_predictor_and_visual_tokens_run_beside(tiny, kind, block):
    tower, predictor, prompts = tiny.tower, predictor_of(tiny), tokens(kind)
    pixels, beside = torch.randn(3, 3, 32, 32), prompts.visual()
    beside = torch.zeros(3, 0, 32) if beside is None else beside.expand(3, -1, -1)
    entering = tower.embed(pixels)
    prefix, patches = entering[:, :1], entering[:, 1:]
    for index in range(tower.depth):
        if index == block:
            kept = predictor.prune(torch.cat([prefix, patches], 1), 8).tokens
            prefix, patches = kept[:, :1], kept[:, 1:]
        out = tower.run(torch.cat([prefix, beside, patches], 1), index, index + 1)
        prefix, beside, patches = out.split([1, beside.shape[1], patches.shape[1]], 1)
    assert patches.shape[1] == 8
    found = learner_of(tiny, prompts, pruner_of(tiny, predictor, block)).image_features(pixels)
    torch.testing.assert_close(found, tower.pool(torch.cat([prefix, patches], 1)), rtol=0, atol=1e-5)
    assert (found - tower(pixels)).abs().max() > 1e-3


@torch.no_grad()
def test_what_was_tuned_before_is_left_out(tiny):
    pruner, pixels = pruner_of(tiny), torch.randn(2, 3, 32, 32)
    tuned = pruner.tuned_by(tokens("visual"))
    expected = learner_of(tiny, tokens("text"), pruner).image_features(pixels)
    assert torch.equal(learner_of(tiny, tokens("text"), tuned).image_features(pixels), expected)


@torch.no_grad()
def test_logits_are_cosines_times_the_scale_of_the_model(tiny):
    learner = learner_of(tiny, tokens("both"), pruner_of(tiny))
    images, texts = torch.randn(3, 24), torch.nn.functional.normalize(torch.randn(2, 24), dim=1)
    cosines = torch.stack([torch.cosine_similarity(images, text[None]) for text in texts], 1)
    torch.testing.assert_close(learner.logits(5 * images, texts), 10 * cosines)
    pixels = torch.randn(3, 3, 32, 32)
    expected = learner.logits(learner.image_features(pixels), learner.text_features(TEXTS))
    assert torch.equal(learner(pixels, TEXTS), expected)
    assert expected.shape == (3, 2)


@torch.no_grad()
def test_texts_carry_the_context_where_there_is_one(tiny):
    prompts = tokens("both")
    found = learner_of(tiny, prompts, pruner_of(tiny)).text_features(TEXTS)
    assert torch.equal(found, prompted_features(tiny.text, prompts.context, TEXTS))
    assert (found - tiny.text(TEXTS)).abs().max() > 1e-2


@torch.no_grad()
def test_without_a_context_classes_keep_their_templates_and_captions_are_texts(tiny):
    data = load_data("demo:test", 3)
    learner = learner_of(tiny, tokens("visual"), pruner_of(tiny), data)
    expected = class_features(tiny.text, data.class_names, data.templates)
    assert torch.equal(learner.text_features([f"{name}." for name in data.class_names]), expected)
    data.captions = [["a"], ["b"], ["c"]]
    captioned = learner_of(tiny, tokens("visual"), pruner_of(tiny), data)
    assert torch.equal(captioned.text_features(TEXTS), tiny.text(TEXTS))


@pytest.mark.parametrize("kind", ["text", "visual", "both"])
def test_the_tokens_are_all_that_learns_and_every_one_does(tiny, kind):
    prompts = tokens(kind, depth=2)
    learner = learner_of(tiny, prompts, pruner_of(tiny).requires_grad_(False))
    assert [*map(id, learner.parameters())] == [*map(id, prompts.parameters())]
    learner(torch.randn(3, 3, 32, 32), TEXTS)[:, 0].sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in prompts.parameters())
