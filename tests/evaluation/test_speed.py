from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from patchranking.errors import UserError
from patchranking.evaluation.cost import count_macs, time_in_turn
from patchranking.evaluation.memory import peak_activations
from patchranking.evaluation.speed import SpeedSettings, measure_speed
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower
from patchranking.towers.base_model import BaseModel


def pruner_for(tower):
    predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
    return Pruner({1: predictor}, BaseModel.of(tower, "tiny"), Schedule({1: 0.5})).eval()


def test_rows_are_consistent_and_the_model_stays_as_it_was(case):
    pruner = pruner_for(case.tower)
    before, keys = case.encode(case.pixels), list(case.model.state_dict())
    settings = SpeedSettings([0.5], batches=[1, 3], precisions=["fp32", "bf16"], repeats=3, seconds=0)
    rows = measure_speed(case.model, pruner, "tiny", settings)
    assert [(r["precision"], r["batch"], r["keep_rate"]) for r in rows] == [
        (precision, batch, rate) for precision in ("fp32", "bf16") for batch in (1, 3) for rate in (1.0, 0.5)
    ]
    dense_gmacs = count_macs(case.tower, case.pixels[:1]) / 1e9
    for row in rows:
        assert row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        share = row["ratio_to_stock"] / (dense_gmacs / row["gmacs"])
        assert row["realised_share"] == pytest.approx(share)
        if row["keep_rate"] == 1:
            assert row["ratio_to_stock"] == row["realised_share"] == 1
            assert row["gmacs"] == pytest.approx(dense_gmacs)
        assert row["peak_activations_mb"] > 0
    assert torch.equal(case.encode(case.pixels), before)
    assert list(case.model.state_dict()) == keys
    assert not any(block._forward_pre_hooks for block in as_tower(case.model).blocks)


def test_another_models_pruner_is_refused(case):
    pruner = pruner_for(case.tower)
    pruner.base = replace(pruner.base, width=7)
    with pytest.raises(UserError, match="fitted to 'tiny' with width 7"):
        measure_speed(case.model, pruner, "tiny", SpeedSettings())


def test_time_goes_on_until_enough_has_gone():
    found = time_in_turn({"a": lambda _: torch.ones(1)}, torch.zeros(1, 1), 2, seconds=0.05)
    assert len(found["a"]) > 2
    assert 0.02 < math.fsum(found["a"]) < 1


def test_peak_counts_what_lives_at_once():
    def run(pixels):
        first = pixels * 2  # 4 bytes a number
        second = first + 1
        del first
        third = second.view(-1)[None] * 3  # the view takes nothing
        return third.sum()

    numbers = 1000
    assert peak_activations(run, torch.zeros(numbers)) == 2 * 4 * numbers + 4
    assert peak_activations(lambda pixels: pixels.mul_(2), torch.zeros(numbers)) == 0
