from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.explore.look import Explorer
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.macs import analytic_macs

METHODS = ["patchranking", "cls-attention", "evit", "tome", "low-res"]


def pixels_of(explorer, picture):
    return explorer.model.preprocess(picture)[None]


@pytest.mark.parametrize("method", METHODS)
def test_both_features_are_those_of_the_model_and_of_the_method(explorer, noise, method):
    seen = explorer.see(noise.image(0), method, 0.7)
    pixels = pixels_of(explorer, noise.image(0))
    dense, pruned = explorer.model.tower(pixels)[0], explorer.entry(method, 0.7).encoding(pixels)[0]
    assert torch.allclose(seen.dense, dense, atol=1e-5)
    assert torch.allclose(seen.pruned, pruned, atol=1e-5)
    assert seen.cosine == pytest.approx(float(F.cosine_similarity(dense, pruned, dim=0)), abs=1e-5)
    assert seen.cosine < 1
    assert 0.5 < seen.share < 0.9
    assert min(seen.milliseconds) > 0
    assert seen.picture.size == (32, 32)


@pytest.mark.parametrize("method", METHODS)
def test_at_all_of_the_macs_nothing_goes(explorer, noise, method):
    seen = explorer.see(noise.image(0), method, 1.0)
    assert seen.cosine == pytest.approx(1, abs=1e-5)
    assert all(stage.kept.all() and stage.count == 16 for stage in seen.stages)
    assert seen.run == seen.grid == (4, 4)


def test_the_least_share_can_be_asked_for_and_less_cannot(explorer):
    tower, entry = explorer.model.tower, explorer.entry("patchranking", explorer.least)
    dense = analytic_macs(tower, tower.feature_size, entry.encoding.schedule.at(1.0))
    assert analytic_macs(tower, tower.feature_size, entry.encoding.schedule) / dense <= explorer.least + 0.05
    with pytest.raises(UserError, match="leaves at least"):
        explorer.entry("patchranking", explorer.least - 0.06)


def test_a_low_resolution_has_fewer_patches_and_no_stages(explorer, noise):
    seen = explorer.see(noise.image(0), "low-res", 0.6)
    assert (seen.stages, seen.importance, seen.grid, seen.patch) == ([], None, (4, 4), 8)
    assert seen.run == (3, 3)


def test_without_classes_those_of_the_images_are_named(explorer, noise):
    look = explorer.look(noise.image(0), [], "", "tome", 0.7)
    classes = F.normalize(explorer.model.text([f"a {name}" for name in noise.class_names]), dim=-1)
    shares = (10 * classes @ F.normalize(look.seen.dense, dim=-1)).softmax(-1)
    assert look.said.dense[0] == (noise.class_names[int(shares.argmax())], pytest.approx(float(shares.max()), abs=1e-5))
    assert {name for name, _ in look.said.pruned} == set(noise.class_names)
    assert sum(share for _, share in look.said.pruned) == pytest.approx(1)
    assert look.caption is None


def test_classes_and_a_caption_can_be_typed(explorer, noise):
    look = explorer.look(noise.image(0), ["cat", "dog"], " a cat ", "evit", 0.7)
    assert {name for name, _ in look.said.dense} == {"cat", "dog"}
    (text,) = explorer.model.text(["a cat"])
    expected = [float(F.cosine_similarity(one, text, dim=0)) for one in (look.seen.dense, look.seen.pruned)]
    assert look.caption == pytest.approx(expected, abs=1e-6)


def test_without_a_text_encoder_there_are_pictures_alone(explorer, noise):
    explorer.model.text = None
    look = explorer.look(noise.image(0), ["cat"], "a cat", "tome", 0.7)
    assert (look.said, look.caption) == (None, None)


def test_what_was_seen_is_not_measured_again_while_someone_types(explorer, noise):
    first = explorer.look(noise.image(0), [], "", "tome", 0.7).seen
    assert explorer.look(noise.image(0), ["cat"], "", "tome", 0.7).seen is first
    assert explorer.look(noise.image(1), [], "", "tome", 0.7).seen is not first
    assert explorer.look(noise.image(0), [], "", "tome", 0.8).seen is not first


def test_methods_are_those_that_the_model_can_run(tiny, noise, pruner):
    assert list(Explorer(tiny, noise, pruner).methods) == METHODS
    assert list(Explorer(tiny, noise).methods) == METHODS[1:]
    tiny.tower.has_class_token = False
    assert list(Explorer(tiny, noise).methods) == ["tome", "low-res"]


def test_tuned_tokens_are_left_out(tiny, noise, pruner):
    tuned = pruner.tuned_by(Prompts("both", 16, 32, num_tokens=2, class_names=noise.class_names, features=24))
    assert Explorer(tiny, noise, tuned).methods["patchranking"].tuned == "none"


def test_a_pruner_of_another_model_is_refused(tinier, noise, pruner):
    with pytest.raises(UserError):
        Explorer(tinier, noise, pruner)


def test_a_picture_that_the_model_cannot_take_is_one_sentence(explorer, noise, monkeypatch):
    def broken(picture):
        raise ValueError("no\nway")

    explorer.model.preprocess = broken
    with pytest.raises(
        UserError, match=r"^This picture cannot be used: cannot be preprocessed, 32 x 32 pixels: .*way\.$"
    ):
        explorer.see(noise.image(0), "tome", 0.7)


@pytest.mark.parametrize("method", ["patchranking", "cls-attention"])
def test_the_first_stage_keeps_the_best_of_the_ranking(explorer, noise, method):
    seen = explorer.see(noise.image(3), method, 0.7)
    stage = seen.stages[0]
    order = np.argsort(-seen.importance.ravel(), kind="stable")
    assert set(order[: stage.count]) == set(np.flatnonzero(stage.kept))
    assert stage.count < 16
