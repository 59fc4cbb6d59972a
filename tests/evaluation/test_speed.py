from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from patchranking.errors import UserError
from patchranking.evaluation import speed
from patchranking.evaluation.cost import count_macs
from patchranking.evaluation.memory import peak_activations
from patchranking.evaluation.speed import SpeedSettings, measure_speed
from patchranking.methods import METHODS
from patchranking.methods.attach import attach
from patchranking.predictor.networks import Predictor
from patchranking.pruner import Pruner
from patchranking.pruning.macs import keep_at_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower
from patchranking.towers.identity import BaseModel


def pruner_for(tower):
    predictor = Predictor(tower.width, tower.num_prefix_tokens, tower.num_patches)
    return Pruner({1: predictor}, BaseModel.of(tower, "tiny"), Schedule({1: 0.5})).eval()


def test_rows_are_consistent_and_the_model_stays_as_it_was(one_of_each):
    case = one_of_each
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


@pytest.mark.parametrize("case", ["transformers", "timm-siglip"], indirect=True)
def test_a_method_that_needs_no_fit_is_timed_as_it_is_attached(case):
    rows = measure_speed(case.model, METHODS["tome"], "tiny", SpeedSettings([0.5], batches=[1], repeats=1, seconds=0))
    with attach(case.model, "tome", keep=0.5):
        assert rows[1]["gmacs"] == pytest.approx(count_macs(case.tower, case.pixels[:1]) / 1e9)
    assert rows[1]["gmacs"] != rows[0]["gmacs"]


@pytest.mark.parametrize("pruner", ["fitted", "tome"])
def test_shares_of_the_dense_macs_take_the_place_of_keep_rates(tower, pruner):
    schedule = Schedule({1: 0.7, 3: 0.5}) if pruner == "fitted" else Schedule.default(tower.depth, 0.5)
    own = METHODS["tome"] if pruner == "tome" else Pruner.unfitted(tower, "tiny", schedule)
    settings = SpeedSettings(batches=[1], repeats=1, seconds=0, macs=[0.8, 0.6])
    dense, *pruned = measure_speed(tower.module, own, "tiny", settings)
    assert (dense["keep_rate"], dense["macs"]) == (1, None)
    assert [row["macs"] for row in pruned] == [0.8, 0.6]
    assert [row["keep_rate"] for row in pruned] == [keep_at_macs(tower, schedule, share) for share in (0.8, 0.6)]
    assert dense["gmacs"] > pruned[0]["gmacs"] > pruned[1]["gmacs"]


def test_another_models_pruner_is_refused(one_of_each):
    case = one_of_each
    pruner = pruner_for(case.tower)
    pruner.base = replace(pruner.base, width=7)
    with pytest.raises(UserError, match="fitted to 'tiny' with width 7"):
        measure_speed(case.model, pruner, "tiny", SpeedSettings([1.0]))


def test_the_predictor_runs_in_the_precision_of_the_model(loaded, monkeypatch):
    pruner, seen, prune = pruner_for(loaded.tower), set(), Predictor.prune

    def spied(self, tokens, *settings):
        seen.add((tokens.dtype, self.correction.weight.dtype))
        return prune(self, tokens, *settings)

    monkeypatch.setattr(Predictor, "prune", spied)
    settings = SpeedSettings([0.5], batches=[1], precisions=["bf16"], repeats=1, seconds=0)
    measure_speed(loaded.model, pruner, "tiny", settings)
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert {weight.dtype for weight in (*pruner.parameters(), *loaded.model.parameters())} == {torch.float32}


@pytest.mark.parametrize("changes", [{"keep": [0.5, 0.0]}, {"keep": [1.1]}, {"batches": [1, 0]}, {"batches": []}])
def test_wrong_settings_are_refused(changes):
    with pytest.raises(UserError, match=r"keep rate|A batch has 1 image or more"):
        SpeedSettings(**changes)


def test_figures_are_medians_over_rounds_and_ratios_are_taken_within_a_round(loaded, monkeypatch):
    asked, rounds = [], {1.0: [4.0, 2.0, 8.0, 3.0, 1.0], 0.5: [1.0, 2.0, 1.0, 4.0, 8.0], 0.25: [1.0] * 4 + [100.0]}

    def given(runs, pixels, repeats, seconds):
        asked.append((list(runs), tuple(pixels.shape), pixels.dtype, repeats, seconds))
        return rounds

    monkeypatch.setattr(speed, "time_in_turn", given)
    settings = SpeedSettings([1.0, 0.5, 0.25], batches=[3], precisions=["fp32"], repeats=9, seconds=2.0)
    dense, half, quarter = measure_speed(loaded.model, pruner_for(loaded.tower), "tiny", settings)
    assert asked == [([1.0, 0.5, 0.25], (3, 3, 32, 32), torch.float32, 9, 2.0)]
    assert [row["p50_ms"] for row in (dense, half, quarter)] == pytest.approx([3000, 2000, 1000])
    assert [row["p99_ms"] for row in (dense, half, quarter)] == pytest.approx([7840, 7840, 96040])
    assert [row["images_per_second"] for row in (dense, half, quarter)] == pytest.approx([1, 1.5, 3])
    assert [row["ratio_to_stock"] for row in (dense, half, quarter)] == pytest.approx([1, 1, 3])
    assert [row["rounds"] for row in (dense, half, quarter)] == [5, 5, 5]
    assert dense["gmacs"] > half["gmacs"] > quarter["gmacs"]
    peak = peak_activations(loaded.tower, torch.zeros(3, 3, 32, 32))
    assert dense["peak_activations_mb"] == pytest.approx(peak / 2**20)
    assert {row["model"] for row in (dense, half, quarter)} == {"tiny"}
    assert {row["backend"] for row in (dense, half, quarter)} == {"eager"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_timed_as_compiled_is_pruned(loaded, precision, monkeypatch):
    """Encoders share weights and blocks' code, and compiled code has no guards on hooks."""
    pruner, seen = pruner_for(loaded.tower), []

    def kept(runs, pixels, repeats, seconds):
        seen.append({rate: run(pixels) for rate, run in runs.items()})
        return {rate: [1.0] for rate in runs}

    monkeypatch.setattr(speed, "time_in_turn", kept)
    monkeypatch.setattr(speed.torch, "compile", partial(torch.compile, backend="eager"))
    rates, batches = ([0.7, 0.4], [2]) if precision == "fp32" else ([0.5], [2, 3])
    for backend in ("eager", "compile"):
        measure_speed(loaded.model, pruner, "tiny", SpeedSettings(rates, batches, [backend], [precision], 1, 0))
    for eager, compiled in zip(seen[: len(batches)], seen[len(batches) :], strict=True):
        assert eager.keys() == compiled.keys() == {1.0, *rates}
        for rate, features in eager.items():
            error = (compiled[rate] - features).norm()
            assert error <= {"fp32": 1e-4, "bf16": 0.03}[precision] * features.norm()
            assert rate == 1.0 or error < 0.5 * (compiled[rate] - eager[1.0]).norm()


def test_compiled_code_that_does_not_prune_is_refused_before_anything_is_timed(one_of_each, monkeypatch):
    case = one_of_each
    monkeypatch.setattr(speed, "time_in_turn", lambda *_: pytest.fail("timed"))
    monkeypatch.setattr(speed, "compiled", lambda encoder: case.tower)
    with pytest.raises(UserError, match=r"compiled encoder at keep rate 0\.5 gives other features than in eager mode"):
        measure_speed(case.model, pruner_for(case.tower), "tiny", SpeedSettings([0.5], [2], ["compile"]))


def test_a_model_that_is_pruned_is_timed_dense_and_pruned_and_stays_pruned(loaded, monkeypatch):
    pruner, pixels, seen = pruner_for(loaded.tower), torch.randn(2, 3, 32, 32), []
    monkeypatch.setattr(speed, "time_in_turn", lambda runs, *_: seen.append(runs) or {rate: [1.0] for rate in runs})
    dense = loaded.tower(pixels)
    with pruner.attached(loaded.model):
        pruned = loaded.tower(pixels)
        measure_speed(loaded.model, pruner, "tiny", SpeedSettings([0.5], [2]))
        assert torch.equal(loaded.tower(pixels), pruned)
    assert torch.equal(seen[0][1.0](pixels), dense)
    assert torch.equal(seen[0][0.5](pixels), pruned)
