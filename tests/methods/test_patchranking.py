from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.methods.batch import Batch
from patchranking.methods.patchranking import PatchRanking
from patchranking.predictor.networks import Predictor
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import top_patches
from patchranking.towers.identity import BaseModel

SCHEDULE = Schedule({1: 0.75, 3: 0.5})


def pruner_for(tower, prompts=None):
    torch.manual_seed(1)
    return Pruner({1: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny"), SCHEDULE, prompts=prompts).eval()


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [None, "visual"])
def test_a_pruner_as_a_method_equals_the_attached_pruner_at_any_schedule(case, tokens):
    tower = case.tower
    prompts = None if tokens is None else Prompts(tokens, 16, tower.width, num_tokens=2, depth=2)
    pruner = pruner_for(tower, prompts=prompts)
    method = PatchRanking(pruner)
    assert (method.tuned, method.prompts) == (pruner.tuned, pruner.prompts)
    for schedule in (SCHEDULE, Schedule({1: 0.4}), Schedule({1: 1.0, 2: 1.0})):
        encoding = method.at(tower, schedule)
        assert encoding.schedule == schedule
        found = encoding(case.pixels)
        with pruner.scheduled(schedule).attached(case.model):
            assert torch.equal(case.encode(case.pixels), found)
    assert pruner.schedule == SCHEDULE


def test_a_pruner_brings_the_classes_its_tokens_were_tuned_for(tower):
    classes = torch.randn(3, 24)
    assert PatchRanking(pruner_for(tower), classes).at(tower, SCHEDULE).classes is classes


@torch.inference_mode()
def test_tokens_that_run_beside_the_patches_are_none_of_those_that_reach_the_end(tower):
    plain = PatchRanking(pruner_for(tower)).at(tower, SCHEDULE)
    beside = PatchRanking(pruner_for(tower, Prompts("visual", 16, tower.width, num_tokens=3))).at(tower, SCHEDULE)
    batch = Batch(tower, torch.randn(2, 3, 32, 32))
    for encoding in (plain, beside):
        found = encoding.run(batch).keep_indices
        assert found.shape == (2, 8)
        assert found.max() < 16
    order = plain.run(batch).keep_indices
    scores = pruner_for(tower)(tower.embed(batch.pixels, 1))
    assert torch.equal(order, scores.argsort(dim=1, descending=True)[:, :8])


@torch.inference_mode()
def test_pruning_before_the_very_first_block_tells_what_stays_beside_visual_tokens(tower):
    schedule, prompts = Schedule({0: 0.5}), Prompts("visual", 16, tower.width, num_tokens=3)
    predictors, base = {0: Predictor.for_tower(tower)}, BaseModel.of(tower, "tiny")
    batch = Batch(tower, torch.randn(2, 3, 32, 32))
    for tokens in (None, prompts):
        pruner = Pruner(predictors, base, schedule, prompts=tokens).eval()
        found = PatchRanking(pruner).at(tower, schedule).run(batch).keep_indices
        assert torch.equal(found, top_patches(pruner(batch.entering(0)), 8))


def test_a_schedule_without_a_predictor_before_its_first_block_is_refused(tower):
    with pytest.raises(UserError, match="before block 2 first, and the pruner has predictors for 1"):
        PatchRanking(pruner_for(tower)).at(tower, Schedule({2: 0.5}))
