from __future__ import annotations

import json
import math

import pytest
import torch

from patchranking.errors import UserError
from patchranking.predictor.doubt import SCALARS, Doubt
from patchranking.predictor.fallback import run_doubted
from patchranking.prompts.tokens import Prompts
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule

SCHEDULE = Schedule({1: 0.75, 3: 0.5})


def doubting(tower, merges=True):
    """A pruner that has learned nothing, with estimates that differ from image to image."""
    torch.manual_seed(1)
    pruner = Pruner.unfitted(tower, "tiny", SCHEDULE, merges=merges)
    pruner.doubt = Doubt(tower.feature_size)
    pruner.doubt.weight.copy_(torch.randn_like(pruner.doubt.weight))
    pruner.doubt.weight[: len(SCALARS)] = torch.tensor([-2.0, 0.5, 0, 0, 0])
    return pruner


@torch.inference_mode()
@pytest.mark.parametrize("merges", [False, True])
def test_images_in_doubt_have_the_dense_feature_and_others_the_pruned_one(tower, merges):
    pruner, pixels = doubting(tower, merges), torch.randn(6, 3, 32, 32)
    dense, found = tower(pixels), pruner.encode(tower, pixels)
    with pruner.attached(tower):
        pruned = tower(pixels)
    assert torch.equal(found.features, pruned)
    assert not found.dense.any()
    assert torch.equal(pruner.encode(tower, pixels, math.inf).features, pruned)
    everything = pruner.encode(tower, pixels, 0)
    assert torch.equal(everything.features, dense)
    assert everything.dense.all()
    bound = found.errors.sort().values[2:4].mean().item()
    some = pruner.encode(tower, pixels, bound)
    assert some.dense.sum() == 3
    assert torch.equal(some.dense, found.errors > bound)
    assert torch.equal(some.errors, found.errors)
    assert torch.equal(some.features[~some.dense], pruned[~some.dense])
    torch.testing.assert_close(some.features[some.dense], dense[some.dense])


@torch.inference_mode()
def test_an_estimate_is_made_of_what_the_pruned_run_shows(tower):
    pruner, pixels = doubting(tower), torch.randn(2, 3, 32, 32)
    found = pruner.encode(tower, pixels)
    unit = torch.nn.functional.normalize(found.features, dim=-1)
    weights = pruner.doubt.weight
    dropped = 1 - (1 + 0.75 + 0.75 + 0.5 + 0.5) / 5
    logarithm = -2 + 0.5 * math.log10(dropped) + unit @ weights[len(SCALARS) :]
    torch.testing.assert_close(found.errors, 10**logarithm)
    shown = run_doubted(tower, tower.embed(pixels, 1), SCHEDULE, pruner.reductions()).signs
    assert torch.equal(found.errors, pruner.doubt(shown))


@torch.inference_mode()
def test_where_nothing_is_dropped_nothing_is_in_doubt(tower):
    pixels = torch.randn(2, 3, 32, 32)
    found = doubting(tower).at(1.0).encode(tower, pixels, 0)
    assert torch.equal(found.features, tower(pixels))
    assert (found.errors.tolist(), found.dense.tolist()) == ([0, 0], [False, False])


def test_the_artefact_keeps_it_and_an_old_one_has_none(tower, tmp_path):
    pruner, pixels = doubting(tower), torch.randn(2, 3, 32, 32)
    pruner.save_pretrained(tmp_path / "new")
    again = Pruner.from_pretrained(tmp_path / "new")
    assert torch.equal(again.doubt.weight, pruner.doubt.weight)
    for one in (again, again.at(0.3).at(0.5), again.scheduled(SCHEDULE), again.tuned_by(None)):
        assert torch.equal(one.encode(tower, pixels).errors, pruner.encode(tower, pixels).errors)
    pruner.doubt = None
    pruner.save_pretrained(tmp_path / "old")
    path = tmp_path / "old/config.json"
    config = json.loads(path.read_text())
    assert config.pop("doubt") is None
    path.write_text(json.dumps(config))
    old = Pruner.from_pretrained(tmp_path / "old")
    with old.attached(tower):
        tower(pixels)
    with pytest.raises(UserError, match="no estimate of its errors: fit again"):
        old.encode(tower, pixels)


def test_what_cannot_be_estimated_is_said_in_one_sentence(tower):
    pruner, pixels = doubting(tower), torch.randn(1, 3, 32, 32)
    for wrong in (-0.1, math.nan):
        with pytest.raises(UserError, match="estimated 1 - cosine above which"):
            pruner.encode(tower, pixels, wrong)
    with pruner.attached(tower), pytest.raises(UserError, match="pruned already"):
        pruner.encode(tower, pixels)
    with pytest.raises(UserError, match="features with 24 channels, and these have 32"):
        pruner.encode(tower.module, pixels)
    tuned = pruner.tuned_by(Prompts("visual", 16, tower.width, num_tokens=2))
    with pytest.raises(UserError, match="without visual tokens"):
        tuned.encode(tower, pixels)
    assert torch.equal(tuned.untuned.encode(tower, pixels).errors, pruner.encode(tower, pixels).errors)
